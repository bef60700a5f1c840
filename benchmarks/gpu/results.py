"""What one part of a GPU run found, on disk after every line, so that a part that is cut off keeps it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
Cell = str | int | float | None


@dataclass(slots=True)
class Table:
    """Lines under a heading.

    Args:
        title: what they are.
        columns: headings.
        note: how they were measured, in a sentence or two.
        rows: the lines.
    """

    title: str
    columns: list[str]
    note: str = ""
    rows: list[list[Cell]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the project asks of a number.

    Args:
        text: what is asked for.
        wanted: the least that reaches it.
        got: what was measured.
    """

    text: str
    wanted: float
    got: float

    @property
    def is_met(self) -> bool:
        """Whether it is reached."""
        return self.got >= self.wanted


class Results:
    """The tables, goals and facts of one part; every change is written at once.

    Args:
        path: of the JSON file; nothing is written without one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.tables: list[Table] = []
        self.goals: list[Goal] = []
        self.facts: dict[str, Any] = {}

    def table(self, title: str, columns: Sequence[str], note: str = "") -> Table:
        """Begin a table."""
        table = Table(title, list(columns), note)
        self.tables.append(table)
        return table

    def add(self, table: Table, *cells: Cell) -> None:
        """Add a line to a table.

        Raises:
            ValueError: it has another number of cells than the table has columns.
        """
        if len(cells) != len(table.columns):
            raise ValueError(f"{table.title}: {len(cells)} cells for {len(table.columns)} columns")
        table.rows.append(list(cells))
        self.write()

    def goal(self, text: str, wanted: float, got: float) -> None:
        """Hold a number to a goal."""
        self.goals.append(Goal(text, wanted, got))
        self.write()

    def fact(self, name: str, value: Any) -> None:
        """Put down a number that other parts may read."""
        self.facts[name] = value
        self.write()

    def write(self) -> None:
        """Put everything on disk, whole or not at all."""
        if self._path is not None:
            beside = self._path.with_suffix(".part")
            beside.write_text(json.dumps(self.document(), indent=1) + "\n")
            os.replace(beside, self._path)

    def document(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "tables": [
                {"title": t.title, "columns": t.columns, "note": t.note, "rows": t.rows}
                for t in self.tables
            ],
            "goals": [
                {"text": g.text, "wanted": g.wanted, "got": g.got, "met": g.is_met}
                for g in self.goals
            ],
            "facts": self.facts,
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """How a part is run.

    Args:
        device: "cpu" or "cuda".
        is_full: sizes for a large GPU; small ones otherwise.
        results: where it puts what it finds.
        before: facts of parts that ran before, by their names.
    """

    device: str
    is_full: bool
    results: Results
    before: dict[str, Any]

    def choose(self, full: _T, trial: _T) -> _T:
        """A size."""
        return full if self.is_full else trial


def asked(description: str | None, given: Sequence[str] | None = None) -> Asked:
    """What a part's command line asks for.

    Args:
        description: of the part.
        given: arguments instead of the process's own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--size", choices=["full", "trial"], default="full")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--before", type=Path, help="JSON file with facts of earlier parts")
    found = parser.parse_args(given)
    before = json.loads(found.before.read_text()) if found.before else {}
    return Asked(found.device, found.size == "full", Results(found.out), before)
