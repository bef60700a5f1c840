"""The recipe on paper: a resolved recipe as TOML, and the page that lists every key."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from prismrec.config.load import dump
from prismrec.config.models import BUILT_IN, Custom
from prismrec.config.models.base import Common
from prismrec.config.recipe import Recipe
from prismrec.config.section import Section, is_section, sections_in

_PREAMBLE = """\
# Recipes

<!-- written by `prismrec config --docs > docs/recipes.md`; a test compares the two -->

A recipe is a TOML file that holds everything a run depends on. A value comes from the command line
(`section.key=value`), else from the file, else from the defaults below. A misspelt key or a value of
another type is an error; all problems are told at once, before anything starts. `prismrec config RECIPE`
prints a recipe with every value filled in.

`base = "other.toml"` at the top of a file takes from another file, whose path is relative to this one,
every key that this one does not say itself. Tables are joined key by key, lists are taken as a whole, and a
table that says a `name` or a `kind` (another model, another optimizer) replaces that of the base.
"""
_WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "string",
    bool: "`true` or `false`",
    Any: "anything",
}
_BUILT_IN = tuple(BUILT_IN.values())  # their name is the heading
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML that `load` reads back; keys without a value stand as comments."""
    return "\n".join(_toml_table("", dump(recipe))).strip("\n") + "\n"


def recipe_page() -> str:
    """A page of Markdown with every key of the schema: type, default, allowed range, meaning."""
    lines = [_PREAMBLE, *_page_section("", Recipe, "Top level")]
    for name, section in BUILT_IN.items():
        lines += _page_section("model", section, f'`[model]` with `name = "{name}"`')
    lines += _page_section("model", Custom, "`[model]` of your own")
    for name, field in Common.model_fields.items():
        lines += _page_below(f"model.{name}", field)
    return "\n".join(lines).rstrip("\n") + "\n"


def _toml_table(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Lines of one TOML table: its own keys, which must come first, then the tables below it."""
    own = {key: item for key, item in table.items() if not isinstance(item, Mapping)}
    if path and (own or not table):
        yield f"\n[{path}]"
    for key, item in own.items():
        yield f"# {key} is not set" if item is None else f"{_toml_key(key)} = {_toml_lines(item)}"
    for key, item in table.items():
        if isinstance(item, Mapping):
            yield from _toml_table(f"{path}.{_toml_key(key)}" if path else _toml_key(key), item)


def _toml_lines(item: Any) -> str:
    """A value; a list of tables takes a line for each."""
    if isinstance(item, list) and item and all(isinstance(each, Mapping) for each in item):
        return "[\n" + "".join(f"  {_toml_value(each)},\n" for each in item) + "]"
    return _toml_value(item)


def _toml_value(item: Any) -> str:
    if isinstance(item, Mapping):
        pairs = [f"{_toml_key(k)} = {_toml_value(v)}" for k, v in item.items() if v is not None]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(item, list):
        return "[" + ", ".join(_toml_value(each) for each in item) + "]"
    return json.dumps(item, ensure_ascii=False)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)


def _page_section(path: str, section: type[Section], title: str) -> Iterator[str]:
    """Heading, meaning and keys of one section, then the sections below it."""
    yield f"## {title}\n\n{_prose(inspect.getdoc(section))}\n"
    fields = section.model_fields
    rows = [
        _page_row(name, field)
        for name, field in fields.items()
        if not is_section(field.annotation) and not (name == "name" and section in _BUILT_IN)
    ]
    if rows:
        yield "| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |"
        yield from rows
        yield ""
    for name, field in fields.items():
        if not (issubclass(section, Common) and name in Common.model_fields):  # these come once
            yield from _page_below(f"{path}.{name}" if path else name, field)


def _page_below(path: str, field: FieldInfo) -> Iterator[str]:
    """The sections in a field."""
    origin = get_origin(field.annotation)
    if origin is dict:
        path += ".NAME"
    for below in sections_in(field.annotation):
        if below is not Section:  # the model's own sections follow by name
            heading = f"`[[{path}]]`" if origin is tuple else f"`[{path}]`"
            for tag in ("kind", "name"):
                kind = below.model_fields.get(tag)
                if kind is not None and get_origin(kind.annotation) is Literal:
                    words = _type_of(kind.annotation).strip("`")
                    if len(get_args(kind.annotation)) == 1:
                        heading += f" with `{tag} = {words}`"
            yield from _page_section(path, below, heading)


def _page_row(name: str, field: FieldInfo) -> str:
    cells = (
        f"`{name}`",
        _type_of(field.annotation),
        _default_of(field),
        _range_of(field),
        _prose(field.description),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_of(annotation: Any) -> str:
    """The type in words; None is left out, the default says so."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [_type_of(each) for each in inner if each is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(each)}`" for each in inner)
    if origin is Annotated:
        return _type_of(inner[0])
    if origin is tuple:
        return f"list: {_type_of(inner[0])}"
    if origin is dict:
        return f"by name: {_type_of(inner[1])}"
    return "section" if is_section(annotation) else _WORDS[annotation]


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Section):
        default = default.model_dump(exclude_defaults=True) or getattr(default, "kind", {})
    return "not set" if default is None else f"`{json.dumps(default)}`"


def _range_of(field: FieldInfo) -> str:
    limits = _limits(field.metadata)
    each = [
        limit
        for inner in get_args(field.annotation)
        if get_origin(inner) is Annotated
        for extra in get_args(inner)[1:]
        for limit in _limits(getattr(extra, "metadata", []))
    ]
    return ", ".join(limits + [f"each {limit}" for limit in each])


def _limits(metadata: list[Any]) -> list[str]:
    """Bounds and patterns among the constraints that pydantic keeps for a field."""
    limits = [
        f"{sign} {getattr(each, name)}"
        for each in metadata
        for name, sign in _SIGNS.items()
        if hasattr(each, name)
    ]
    patterns = [getattr(each, "pattern", None) for each in metadata]
    return limits + [f"matches `{pattern}`" for pattern in patterns if pattern]


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())
