"""The base of every recipe section: frozen, strict, and deaf to unknown keys."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of a recipe. A misspelt key is an error, a value of another type too."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True
    )


def is_section(annotation: Any) -> bool:
    """Whether a type is a recipe section."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections anywhere in a type, such as the values of a `dict`."""
    if is_section(annotation):
        return [annotation]
    return [found for inner in get_args(annotation) for found in sections_in(inner)]


def kinds_in(annotation: Any) -> dict[str, type[Section]]:
    """The sections of a type that is one of several, by the `kind` that tells them apart."""
    if get_origin(annotation) not in (Annotated, Union, types.UnionType):
        return {}
    tagged = [each for each in sections_in(annotation) if "kind" in each.model_fields]
    return {
        kind: each for each in tagged for kind in get_args(each.model_fields["kind"].annotation)
    }
