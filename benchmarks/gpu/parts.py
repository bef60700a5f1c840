"""What a run on a GPU measures, in the order of its worth, and how long each part may take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the run.

    Args:
        name: in the report and on the command line.
        title: heading in the report.
        command: what it runs; `--device`, `--size`, `--out` and `--before` are put behind it.
        seconds: after which it is ended.
        group: which of the two calls it belongs to, "first" or "second"; "both" for ceilings, which
            everything is held against.
    """

    name: str
    title: str
    command: tuple[str, ...]
    seconds: float
    group: str


def _part(name: str, title: str, seconds: float, group: str, *arguments: str) -> Part:
    module = arguments[0] if arguments else name
    command = (sys.executable, "-m", f"benchmarks.gpu.{module}", *arguments[1:])
    return Part(name, title, command, seconds, group)


PARTS: tuple[Part, ...] = (
    _part("ceilings", "Ceilings", 60, "both"),
    _part("right", "Right: the tests of tests/gpu", 180, "first"),
    _part("train", "Training: samples per second", 110, "first"),
    _part("tables", "Tables", 200, "first"),
    _part("ladder", "Training: the ladder", 160, "second"),
    _part("sweep", "Tables: batches, bags and types", 150, "second", "tables", "--sweep"),
    _part("reader", "Training from Parquet files", 80, "second"),
    _part("models", "Several sets and the production recipe", 110, "second"),
)


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of some names or groups, in the order in which they run; all of them for no name.

    Raises:
        ValueError: there is no such part or group.
    """
    known = {part.name for part in PARTS} | {"first", "second"}
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(
            f"no part is called {', '.join(wrong)}; there are {', '.join(sorted(known))}"
        )
    groups = {name for name in names if name in ("first", "second")}
    return [
        part
        for part in PARTS
        if not names
        or part.name in names
        or part.group in groups
        or (groups and part.group == "both")
    ]
