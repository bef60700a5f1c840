"""Measured program: the training loop itself, with its reader, over the benchmark's rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.channel import Channel
from benchmarks.train_data import recipe
from prismrec.data.source import open_data
from prismrec.train.loop import Session, train
from prismrec.train.process_group import process_group
from prismrec.train.run_files import RunFiles


class _Done(BaseException):
    """No more windows are wanted."""


class Stopwatch:
    """A tracker that hears of every window's end and lets the loop go on when it is asked to.

    Args:
        channel: to the benchmark.
        facts: said once, after the first windows, which warm up.
        warm_up: their number.
    """

    def __init__(self, channel: Channel, facts: dict[str, Any], warm_up: int = 2) -> None:
        self._channel = channel
        self._facts = facts
        self._left = warm_up
        self._start = self._start_cpu = 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """A window has ended: say what it took, then wait for the next request."""
        if "memory/predicted_bytes" in metrics:  # said once, before the first step
            self._facts["planner_bytes"] = metrics["memory/predicted_bytes"]
            self._facts["table_bytes"] = metrics["memory/table_bytes"]
            return
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._start_cpu
        self._left -= 1
        if self._left > 0:
            return
        if self._left == 0:
            self._channel.say(ready=True, **self._facts)
        else:
            self._channel.say(seconds=seconds, cpu=cpu)
        if not self._channel.is_asked():
            raise _Done
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Facts of the run: not needed here."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Files of the run: not needed here."""

    def close(self) -> None:
        """Nothing waits."""


def main() -> None:
    """Train until nobody asks for more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--steps", type=int, required=True)
    asked = parser.parse_args()
    channel = Channel()
    chosen = recipe(asked.data, asked.precision, asked.steps)
    source = open_data(chosen.data.path)
    facts: dict[str, Any] = {}
    with TemporaryDirectory() as directory, process_group("cpu") as ranks:
        facts["before_bytes"] = psutil.Process().memory_info().rss
        session = Session(ranks, RunFiles(Path(directory)), Stopwatch(channel, facts), "bench")
        try:
            train(chosen, source, session)
        except _Done:
            return


if __name__ == "__main__":
    main()
