"""The space of a search: keys of a recipe and the values that each may take, and trials drawn from it."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismrec.config import ConfigError, Recipe, UserError, load, nearest

WAYS = ("uniform", "loguniform", "int", "choice")
Values = dict[str, Any]
"""A value for every key of the space."""

_FIXED = re.compile(
    r"(name|out|data\.path|data\.splits.*|tracking\..*|workers\..*|evaluate\.metric)"
)
_DRAWS = 200
"""Times that a trial equal to an earlier one is drawn again."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A key of the recipe and the values that it may take.

    Args:
        key: such as `train.optimizer.learning_rate`.
        way: one of `WAYS`.
        values: least and largest value, both possible, or the choices.
    """

    key: str
    way: str
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One of its values; of `loguniform` those of equal ratio are equally likely."""
        if self.way == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.way == "int":
            return int(rng.integers(low, high, endpoint=True))
        if self.way == "loguniform":
            return float(np.clip(math.exp(rng.uniform(math.log(low), math.log(high))), low, high))
        return float(rng.uniform(low, high))


def read_space(path: Path) -> tuple[Dimension, ...]:
    """The space in a TOML file.

    Raises:
        UserError: the file is missing or no TOML, or says of a key what cannot be drawn from.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"--space: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--space: {path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--space: {path}: not valid TOML: {error}") from None
    found = tuple(_dimension(key, leaf, path) for key, leaf in _leaves(tree, ""))
    if not found:
        raise UserError(
            f"--space: {path} names no key; write a line such as "
            "train.optimizer.learning_rate = { loguniform = [1e-4, 1e-2] }"
        )
    return found


def draw_trials(space: Sequence[Dimension], count: int, seed: int) -> list[Values]:
    """Values of every trial, no two alike.

    Args:
        space: what is drawn from.
        count: trials.
        seed: the same seed gives the same trials, and more of them begin with these.

    Raises:
        UserError: the space has fewer points.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Values] = []
    seen: set[str] = set()
    for _ in range(count):
        for _ in range(_DRAWS):
            values = {each.key: each.draw(rng) for each in space}
            name = json.dumps(values, sort_keys=True)
            if name not in seen:
                break
        else:
            raise UserError(
                f"--trials: {count} trials that differ could not be drawn, only {len(drawn)}; ask for "
                "fewer or widen the space"
            )
        seen.add(name)
        drawn.append(values)
    return drawn


def check_space(
    space: Sequence[Dimension], recipe: Path, overrides: Sequence[str], where: Path
) -> None:
    """Whether the recipe takes the ends, or every choice, of each key by itself.

    Raises:
        UserError: a key is unknown, may not be searched, or does not take a value; it says which.
    """
    for each in space:
        if _FIXED.fullmatch(each.key):
            raise UserError(
                f"--space: {where}: {each.key} is the same for all trials, or they could not be "
                "compared; set it in the recipe"
            )
        for value in each.values:
            try:
                load(recipe, [*overrides, as_override(each.key, value)])
            except ConfigError as error:
                raise UserError(
                    f"--space: {where}: {each.key} = {json.dumps(value)}: "
                    + "; ".join(error.problems)
                ) from None


def recipes_of(trials: Sequence[Values], recipe: Path, overrides: Sequence[str]) -> list[Recipe]:
    """The recipe of every trial.

    Raises:
        UserError: values do not go together.
    """
    found = []
    for number, values in enumerate(trials):
        changes = [as_override(key, value) for key, value in values.items()]
        try:
            found.append(load(recipe, [*overrides, *changes]))
        except ConfigError as error:
            raise UserError(
                f"--space: trial {number} would have {', '.join(changes)}, which do not go together: "
                + "; ".join(error.problems)
            ) from None
    return found


def as_override(key: str, value: Any) -> str:
    """`key=value` as a command takes it."""
    return f"{key}={json.dumps(value)}"


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Keys with what is said of them; a table that says how to draw ends a key."""
    for name, value in tree.items():
        key = f"{above}.{name}" if above else name
        if isinstance(value, Mapping) and not any(
            isinstance(each, list) for each in value.values()
        ):
            yield from _leaves(value, key)
        else:
            yield key, value


def _dimension(key: str, said: Any, path: Path) -> Dimension:
    where = f"--space: {path}: {key}"
    if not isinstance(said, Mapping) or len(said) != 1:
        raise UserError(
            f"{where}: say one of {', '.join(WAYS)} with a list, such as {{ uniform = [0.0, 0.5] }}"
        )
    ((way, values),) = said.items()
    if way not in WAYS:
        raise UserError(f"{where}: unknown way '{way}'; {nearest(way, WAYS)}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}.{way}: must be a list of values, got {values!r}")
    if way == "choice":
        return Dimension(key, way, tuple(values))
    numbers = (int,) if way == "int" else (int, float)
    is_number = all(isinstance(each, numbers) and not isinstance(each, bool) for each in values)
    if len(values) != 2 or not is_number or not values[0] < values[1]:
        kind = "whole numbers" if way == "int" else "numbers"
        raise UserError(f"{where}.{way}: must be two rising {kind}, got {values!r}")
    if way == "loguniform" and values[0] <= 0:
        raise UserError(f"{where}.loguniform: must be above 0, got {values[0]!r}")
    if way != "int":
        values = [float(each) for each in values]
    return Dimension(key, way, tuple(values))
