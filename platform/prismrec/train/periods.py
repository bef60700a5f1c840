"""What a run over a stream leaves beside its checkpoints: its windows, and versions to publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.train.run_files import RunFiles, append_line, parse_lines, write_whole


@dataclass(frozen=True, slots=True)
class Period:
    """One version of the model: asked for by a worker, published by whoever started the run.

    Args:
        directory: its own.
    """

    directory: Path

    @property
    def number(self) -> int:
        """Windows that the model was trained on."""
        return int(self.directory.name)

    @property
    def run(self) -> RunFiles:
        """The directory as that of a run: held-out rows, plan and inference copy."""
        return RunFiles(self.directory)

    @property
    def checkpoint(self) -> Path:
        """The weights, until they are published."""
        return self.directory / "checkpoint"

    @property
    def deltas(self) -> Path:
        """Vectors that training touched since the period before."""
        return self.directory / "delta"

    @property
    def is_requested(self) -> bool:
        """Whether everything is there to publish it."""
        return (self.directory / "request.json").exists()

    @property
    def is_published(self) -> bool:
        """Whether it was published, or given up with a reason."""
        return (self.directory / "published.json").exists()

    def request(self, facts: dict[str, Any]) -> None:
        """Ask for it, once everything is there."""
        write_whole(self.directory / "request.json", json.dumps(facts, indent=1))

    def facts(self) -> dict[str, Any]:
        """What it was asked for with: its number, step, the slice to judge it by, and metrics on it."""
        return dict(json.loads((self.directory / "request.json").read_text()))

    def publish(self, found: dict[str, Any]) -> None:
        """Put down what became of it and drop the weights, which the inference copy has."""
        write_whole(self.directory / "published.json", json.dumps(found, indent=1))
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def published(self) -> dict[str, Any]:
        """What became of it."""
        return dict(json.loads((self.directory / "published.json").read_text()))


@dataclass(frozen=True, slots=True)
class PeriodFiles:
    """Paths of a run over a stream.

    Args:
        directory: the run's.
    """

    directory: Path

    @property
    def slices(self) -> Path:
        """The record of what was trained on, one JSON object per line."""
        return self.directory / "windows.jsonl"

    def read_slices(self) -> list[dict[str, Any]]:
        """The record by slice; of one that a resumed run began again, its last line."""
        if not self.slices.exists():
            return []
        found = {each["slice"]: each for each in parse_lines(self.slices.read_text().split("\n"))}
        return [found[number] for number in sorted(found)]

    def append_slice(self, line: dict[str, Any]) -> None:
        """Add to the record.

        Raises:
            UserError: see `append_line`.
        """
        append_line(self.slices, line)

    def period(self, number: int) -> Period:
        """The version after so many windows."""
        return Period(self.directory / "periods" / f"{number:06d}")

    def periods(self) -> Iterator[Period]:
        """Every version asked for, in order."""
        for path in sorted(self.directory.glob("periods/*")):
            if Period(path).is_requested:
                yield Period(path)
