"""How the benchmark and the programs it compares talk: one JSON object per line, standard library only.

A measured program says it is ready, then runs one window of steps for every line it gets and says
how long that took. All programs live at once, and only one of them has work.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""


class Channel:
    """The measured program's end. What libraries print goes to standard error from now on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        """Send one message, with the process's peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._out.write(json.dumps({**facts, "peak_bytes": peak}) + "\n")
        self._out.flush()

    def is_asked(self) -> bool:
        """Wait for the next request; false when there will be none."""
        return bool(sys.stdin.readline())

    def serve(self, run: Callable[[int], None], steps: int, warm_up: int) -> None:
        """Warm up, then answer every request by the seconds that `steps` steps took."""
        run(warm_up)
        self.say(ready=True)
        while self.is_asked():
            start, start_cpu = time.perf_counter(), time.process_time()
            run(steps)
            self.say(seconds=time.perf_counter() - start, cpu=time.process_time() - start_cpu)


class Program:
    """The benchmark's end of one measured program.

    Args:
        name: for messages.
        command: what starts it.
        threads: cores it may use.
        log: file for everything it prints.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int, log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.peak_bytes = 0
        self.facts = self._hear()

    def window(self) -> tuple[float, float]:
        """Seconds that one window of steps takes now, by the clock and of all its cores."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        heard = self._hear()
        return heard["seconds"], heard["cpu"]

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text().strip().splitlines()[-5:]
            raise RuntimeError(f"{self.name} ended early; {self._log} says: " + " | ".join(tail))
        message: dict[str, Any] = json.loads(line)
        self.peak_bytes = message.pop("peak_bytes")
        return message
