"""What is wrong with a TOML file, in our words: a line for every problem that pydantic found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prismrec.config.errors import nearest
from prismrec.config.section import Section, is_section, kinds_in, sections_in

Models = Mapping[str, type[Section]]
"""Sections that `model` may be, by the name in it."""


def explained(
    error: ValidationError,
    root: type[Section],
    tree: Mapping[str, Any],
    models: Models | None = None,
) -> list[str]:
    """The problems of a tree that is not valid, sorted, `section.key: what is wrong` each.

    Args:
        error: what pydantic found.
        root: section that the tree should have been.
        tree: as TOML gives it.
        models: sections that its `model` may be, by the name in it; None where it has no such key.
    """
    model = tree.get("model") if models else None
    name = model.get("name") if isinstance(model, Mapping) else None
    known = _Sections(root, models or {}, name if isinstance(name, str) else "")
    return sorted({line for each in error.errors() for line in _explain(each, known)})


@dataclass(frozen=True, slots=True)
class _Sections:
    """Where the sections of a tree are looked up.

    Args:
        root: of the whole tree.
        models: what `model` may be.
        model: the name in it.
    """

    root: type[Section]
    models: Models
    model: str


def _where(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _explain(details: ErrorDetails, known: _Sections) -> list[str]:
    """Lines for one pydantic error, in our words."""
    place, holder, own = _place(details["loc"], known)
    where, kind = _where(place), details["type"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return [f"{where}: unknown key; {nearest(str(place[-1]), _keys_of(holder, place, known))}"]
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


def _place(location: Sequence[int | str], known: _Sections) -> tuple[list[int | str], Any, Any]:
    """Where an error is, as keys of the tree, the type that holds it and its own type.

    Where a section comes in kinds, pydantic puts the kind between the keys.
    """
    place: list[int | str] = []
    holder: Any = None
    own: Any = known.root
    for part in location:
        kinds = kinds_in(own)
        if part in kinds:
            own = kinds[str(part)]
        else:
            place.append(part)
            holder, own = own, _below(own, part)
            if place == ["model"]:  # its name says which section it is
                own = known.models.get(known.model, own)
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


def _keys_of(holder: Any, place: Sequence[int | str], known: _Sections) -> list[str]:
    """Keys that the section holding `place` knows."""
    if known.models and place[0] == "model" and len(place) == 2:
        section = known.models.get(known.model)
        return ["name", "options"] if section is None else list(section.model_fields)
    return [key for each in sections_in(holder) for key in each.model_fields]
