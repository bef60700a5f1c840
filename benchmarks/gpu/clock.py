"""Milliseconds of work on a device: events on its stream, or the processor's clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.clock import Clock, CudaClock


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds of one call, over windows.

    Args:
        median: of the windows.
        least: the quickest window.
        most: the slowest one.
    """

    median: float
    least: float
    most: float

    def text(self) -> str:
        """As a cell of a table: the median, and the range behind it.

        >>> Spread(2.5, 2.0, 4.0).text()
        '2.50 (2.00 to 4.00)'
        """
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def timed(call: Callable[[], object], device: str, calls: int, windows: int = 5) -> Spread:
    """Milliseconds of a call, the mean over a window of calls, after one window that warms up.

    Args:
        call: the work; what it starts on the device is waited for at the end of a window.
        device: "cpu" or "cuda".
        calls: of a window.
        windows: that are measured.
    """
    taken = []
    for window in range(windows + 1):
        clock = CudaClock() if device == "cuda" else Clock()
        clock.mark()
        for _ in range(calls):
            call()
        clock.mark()
        (milliseconds,) = clock.milliseconds()
        if window:
            taken.append(milliseconds / calls)
    return Spread(statistics.median(taken), min(taken), max(taken))


def synchronize(device: str) -> None:
    """Wait for what the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()
