"""Reading a recipe: defaults < base file < recipe file < `section.key=value`, every problem at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prismrec.config.errors import ConfigError
from prismrec.config.explain import explained
from prismrec.config.models import BUILT_IN
from prismrec.config.read import read
from prismrec.config.recipe import Recipe


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
        raise ConfigError(source, problems + explained(error, Recipe, tree, BUILT_IN)) from None
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
