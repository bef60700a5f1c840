"""What a run over a stream leaves beside its checkpoints: its windows, and versions to publish."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.train.run_files import RunFiles


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
        _write_whole(self.directory / "request.json", facts)

    def facts(self) -> dict[str, Any]:
        """What it was asked for with: its number, step, the slice to judge it by, and metrics on it."""
        return dict(json.loads((self.directory / "request.json").read_text()))

    def publish(self, found: dict[str, Any]) -> None:
        """Put down what became of it and drop the weights, which the inference copy has."""
        _write_whole(self.directory / "published.json", found)
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
        lines = [line for line in self.slices.read_text().split("\n") if line.endswith("}")]
        found = {each["slice"]: each for each in map(json.loads, lines)}
        return [found[number] for number in sorted(found)]

    def period(self, number: int) -> Period:
        """The version after so many windows."""
        return Period(self.directory / "periods" / f"{number:06d}")

    def periods(self) -> Iterator[Period]:
        """Every version asked for, in order."""
        for path in sorted(self.directory.glob("periods/*")):
            if Period(path).is_requested:
                yield Period(path)


def _write_whole(path: Path, document: dict[str, Any]) -> None:
    """Write a file that nobody ever sees half of."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(document, indent=1))
    scratch.replace(path)
