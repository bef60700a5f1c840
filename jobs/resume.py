"""Which keys of a recipe may change when a run is resumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prismrec.config import Recipe, UserError
from prismrec.config.embedding import TableOptions
from prismrec.config.section import Section

_FREE = re.compile(
    r"(workers|train|evaluate|checkpoint|tracking|export)\..+|out|data\.on_bad_file|calibration(\..+)?"
    r"|online\.(?!window$).+"
    r"|embedding\.(layout|sharding|kernel|cache_load_factor|reserved_memory|communication\..+)"
    r"|embedding\.tables\.[^.]+\.(layout|sharding|kernel)"
)
"""How long and where a run trains, what it tells, what it fits at its end, and where its tables lie."""


def check_resumable(before: Recipe, now: Recipe, directory: Path) -> None:
    """Whether a run may go on with a recipe.

    Args:
        before: the recipe of the run so far.
        now: the recipe to go on with.
        directory: the run's, for the message.

    Raises:
        UserError: keys that decide what is trained, or on which rows, differ; it names them.
    """
    pair = _with_same_tables(before, now)
    changed = [key for key in _differing(*pair, "") if not _FREE.fullmatch(key)]
    if not changed:
        return
    *others, last = changed
    keys = f"{', '.join(others)} and {last}" if others else last
    verb, those = ("differ", "those") if others else ("differs", "that")
    raise UserError(
        f"--resume: {keys} {verb} from {those} of the run in {directory}; resume with the same "
        "recipe or start a new run"
    )


def _with_same_tables(before: Recipe, now: Recipe) -> tuple[Recipe, Recipe]:
    """Both with options for every table that either names: none given is the defaults."""
    names = {**before.embedding.tables, **now.embedding.tables}
    return _with_tables(before, names), _with_tables(now, names)


def _with_tables(recipe: Recipe, names: dict[str, TableOptions]) -> Recipe:
    tables = {name: recipe.embedding.tables.get(name, TableOptions()) for name in names}
    embedding = recipe.embedding.model_copy(update={"tables": tables})
    return recipe.model_copy(update={"embedding": embedding})


def _differing(before: Any, now: Any, where: str) -> Iterator[str]:
    """Keys of values that differ: as deep as both have the same keys, in the order of the schema."""
    if before == now:
        return
    if isinstance(before, Section) and type(before) is type(now):
        for name in type(before).model_fields:
            below = f"{where}.{name}" if where else name
            yield from _differing(getattr(before, name), getattr(now, name), below)
    elif isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            yield from _differing(before[key], now[key], f"{where}.{key}")
    elif _alike(before, now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differing(old, new, f"{where}[{index}]")
    else:
        yield where


def _alike(before: Any, now: Any) -> bool:
    """Whether two values are lists of as many sections."""
    lists = isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now)
    return lists and all(isinstance(each, Section) for each in (*before, *now))
