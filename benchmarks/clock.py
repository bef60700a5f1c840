"""Times between marks: by the processor's clock, or on a CUDA device's own stream."""

from __future__ import annotations

import time

import torch


class Clock:
    """Times between marks, by the processor's clock."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """Note the time."""
        self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """From each mark to the next."""
        times = zip(self._marks, self._marks[1:], strict=False)
        return [(stop - start) * 1e3 for start, stop in times]


class CudaClock:
    """Times between marks, on the device's own stream."""

    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Note the time when the device gets here."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def milliseconds(self) -> list[float]:
        """From each mark to the next."""
        self._marks[-1].synchronize()
        times = zip(self._marks, self._marks[1:], strict=False)
        return [start.elapsed_time(stop) for start, stop in times]
