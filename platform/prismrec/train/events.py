"""The run's own record: one JSON object per line, written by rank 0 and followed by who started it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

from prismrec.train.run_files import append_line, parse_lines


class EventLog:
    """A tracker that appends to a file.

    Args:
        path: the file; a run that resumes goes on appending.

    Raises:
        UserError: the file cannot be written, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write them as one event."""
        self._write({"event": "parameters", "values": dict(parameters)})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write them as one event."""
        values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._write({"event": "metrics", "step": step, "values": values})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Write where the file is."""
        self._write({"event": "file", "path": str(path), "folder": folder})

    def close(self) -> None:
        """Nothing waits: every event was written at once."""

    def _write(self, event: dict[str, Any]) -> None:
        append_line(self._path, {"time": time.time(), **event})


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """All events written so far."""
    with path.open() as file:
        yield from parse_lines(file)


def follow(path: Path, ended: Event, poll_s: float = 0.2) -> Iterator[dict[str, Any]]:
    """Events as they are written, until `ended` is set and the file is read to its end."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        is_last = ended.is_set()
        if path.exists():
            with path.open() as file:
                file.seek(position)
                while (line := file.readline()).endswith("\n"):
                    position = file.tell()
                    yield from parse_lines([line])
        if is_last:
            return
        ended.wait(poll_s)
