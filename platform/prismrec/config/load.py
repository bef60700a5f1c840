"""Reading a recipe: defaults < base file < recipe file < `section.key=value`, every problem at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prismrec.config.errors import ConfigError, nearest
from prismrec.config.models import BUILT_IN
from prismrec.config.read import read
from prismrec.config.recipe import Recipe
from prismrec.config.section import is_section, kinds_in, sections_in


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The validated recipe in a TOML file, on its base, with overrides such as `train.steps=5` applied.

    Raises:
        UserError: see `prismrec.config.read.read`.
        ConfigError: everything that is wrong with the recipe.
    """
    raw = read(Path(path))
    return from_dict(raw, overrides, source=str(path))


def from_dict(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe"
) -> Recipe:
    """The validated recipe in a nested mapping, as TOML gives it.

    Raises:
        ConfigError: everything that is wrong with the recipe, overrides included.
    """
    tree = _thaw(raw)
    problems = [line for text in overrides if (line := _override(tree, text))]
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [line for details in error.errors() for line in _explain(details, tree)]
        raise ConfigError(source, problems + sorted(set(lines))) from None
    if problems:
        raise ConfigError(source, problems)
    return recipe


def flatten(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as `section.key: value`, lists of sections numbered.

    >>> from prismrec.config.train import Schedule
    >>> dict(_flat("s", Schedule().model_dump()))["s.decay"]
    'none'
    """
    return dict(_flat("", dump(recipe)))


def dump(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as a nested mapping that `from_dict` reads back."""
    tree = recipe.model_dump(mode="json", exclude={"model"})
    tree["model"] = recipe.model.model_dump(mode="json")
    if recipe.embedding.sets:  # the shorthand and the list exclude each other
        tree["embedding"] = {
            key: value for key, value in tree["embedding"].items() if key not in ("dim", "num_sets")
        }
    return dict(sorted(tree.items(), key=lambda item: isinstance(item[1], dict | list)))


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items() if item is not None}
    return [_thaw(item) for item in value] if isinstance(value, list | tuple) else value


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Apply one `section.key=value`; the sentence that says why not, or None."""
    key, sign, literal = text.partition("=")
    if not sign or not key.strip():
        return f"override '{text}' is not of the form section.key=value"
    parts = key.strip().split(".")
    try:
        value = tomllib.loads(f"value = {literal}")["value"]
    except tomllib.TOMLDecodeError:
        value = literal.strip()  # a bare word is a string
    node = tree
    for depth, part in enumerate(parts[:-1]):
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            path = ".".join(parts[: depth + 1])
            return f"override '{text}': '{path}' is not a section; change it in the recipe file"
        node = below
    node[parts[-1]] = value
    return None


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from _flat(f"{prefix}.{index}", item)
    else:
        yield prefix, value


def _where(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _explain(details: ErrorDetails, tree: dict[str, Any]) -> list[str]:
    """Lines for one pydantic error, in our words."""
    place, holder, own = _place(details["loc"], tree)
    where, kind = _where(place), details["type"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return [f"{where}: unknown key; {nearest(str(place[-1]), _keys_of(holder, place, tree))}"]
    if kind == "missing":
        return [f"{where}: missing (required)"]
    if kind == "union_tag_not_found":
        return [f"{where}.kind: missing (required); {nearest('', kinds_in(own))}"]
    if kind == "union_tag_invalid":
        tag = str(context["tag"])
        return [f"{where}.kind: unknown kind '{tag}'; {nearest(tag, kinds_in(own))}"]
    if kind == "literal_error":
        return [f"{where}: must be one of {context['expected']}, got {details['input']!r}"]
    if kind in _COMPARISONS:
        sign, limit = _COMPARISONS[kind]
        return [f"{where}: must be {sign} {context[limit]}, got {details['input']!r}"]
    if kind in _TYPES:
        got = details["input"]
        return [f"{where}: must be {_TYPES[kind]}, got {got!r} ({type(got).__name__})"]
    if kind == "string_pattern_mismatch":
        return [f"{where}: {details['input']!r} is not of the form {context['pattern']}"]
    message = str(context["error"]) if kind == "value_error" else details["msg"]
    return [f"{where}: {line}" if where else line for line in message.split("\n")]


_COMPARISONS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "tuple_type": "a list",
}


def _place(location: Sequence[int | str], tree: dict[str, Any]) -> tuple[list[int | str], Any, Any]:
    """Where an error is, as keys of the recipe, the type that holds it and its own type.

    Where a section comes in kinds, pydantic puts the kind between the keys.
    """
    place: list[int | str] = []
    holder: Any = None
    own: Any = Recipe
    for part in location:
        kinds = kinds_in(own)
        if part in kinds:
            own = kinds[str(part)]
        else:
            place.append(part)
            holder, own = own, _below(own, part)
            if place == ["model"]:  # its name says which section it is
                own = BUILT_IN.get(tree.get("model", {}).get("name", ""), own)
    return place, holder, own


def _below(annotation: Any, part: int | str) -> Any:
    """Type of what a key or an index names inside a value of some type; None if nothing."""
    if is_section(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    sections = sections_in(annotation)
    return _below(sections[0], part) if len(sections) == 1 else None


def _keys_of(holder: Any, place: Sequence[int | str], tree: dict[str, Any]) -> list[str]:
    """Keys that the section holding `place` knows."""
    if place[0] == "model" and len(place) == 2:
        name = tree.get("model", {}).get("name", "")
        return list(BUILT_IN[name].model_fields) if name in BUILT_IN else ["name", "options"]
    return [key for section in sections_in(holder) for key in section.model_fields]
