"""The record of a run that is disturbed: when its workers started, and which step was done when."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 900


class Record:
    """The record of the only run of a folder, read anew at every question.

    Args:
        directory: the folder; what the run says may lie there as `out.txt`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def newest(self, until: float = math.inf) -> int:
        """The newest step that was done by then; 0 where there is none."""
        return max((step for when, step in self._steps() if when <= until), default=0)

    def back(self, at: float) -> float | None:
        """When workers were there again after that time; None as long as they are not."""
        events = self._events()
        return min(
            (e["time"] for e in events if e["event"] == "parameters" and e["time"] > at),
            default=None,
        )

    def first(self, at: float) -> int:
        """The first step of those workers, which have done one."""
        back = self._back_or_never(at)
        return min(step for when, step in self._steps() if when > back)

    def past(self, at: float, before: int = 0) -> float | None:
        """When those workers had done a step that none had done; None as long as they have not.

        Workers from before may go on for a moment, until somebody ends them.

        Args:
            at: the time of the disturbance.
            before: the newest step known then.
        """
        back, steps = self._back_or_never(at), self._steps()
        done = max([before, *(step for when, step in steps if when <= back)])
        return min((when for when, step in steps if when > back and step > done), default=None)

    def await_(
        self, is_so: Callable[[], bool], what: str, run: subprocess.Popen[Any] | None = None
    ) -> None:
        """Wait until something is so.

        Args:
            is_so: asked a few times a second.
            what: for which is waited.
            run: that does it, if it is a process here.

        Raises:
            RuntimeError: it took too long, or the run failed.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not is_so():
            code = None if run is None else run.poll()
            if code:
                raise RuntimeError(f"no {what}: exit code {code}\n{self._said()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {DEADLINE_S} s\n{self._said()}")
            time.sleep(0.1)

    def _back_or_never(self, at: float) -> float:
        back = self.back(at)
        return math.inf if back is None else back

    def _steps(self) -> list[tuple[float, int]]:
        losses = (e for e in self._events() if "train/loss" in e.get("values", {}))
        return [(each["time"], each["step"]) for each in losses]

    def _events(self) -> list[dict[str, Any]]:
        """All of them but one that is being written."""
        return [
            json.loads(line)
            for path in self._directory.glob("runs/*/events.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def _said(self) -> str:
        out = self._directory / "out.txt"
        return out.read_text()[-1500:] if out.exists() else ""
