"""Whether SIGTERM or Ctrl-C asked a run to save and leave.

A request is a file in the run's directory, so that whoever takes the signal, the process that
started the run or one of its workers, reaches all ranks wherever they are.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from prismrec.train.process_group import Ranks
from prismrec.train.signals import asked

_POLL_S = 0.2
_TALK_S = 0.1


class StopRequest:
    """Whether somebody asked the run to stop.

    Args:
        paths: files that a request may be in.
        ranks: rank 0 looks, the others hear from it.
    """

    def __init__(self, paths: Sequence[Path], ranks: Ranks) -> None:
        self._paths = tuple(paths)
        self._ranks = ranks
        self._name = ""
        self._number = 0
        self._next_look = 0.0
        self._calls = 1
        self._calls_left = 0
        self._last = time.monotonic()

    def agreed(self) -> str:
        """Name of the signal, the same on all ranks; an empty text without a request.

        The ranks speak to each other about ten times a second, not at every call: rank 0 says how many
        calls that is. It costs a device nothing: the message is host memory.

        Collective: every rank calls it equally often.
        """
        if self._calls_left:
            self._calls_left -= 1
            return self._name
        message = torch.zeros(2, dtype=torch.int64)
        if self._ranks.is_first:
            message = torch.tensor([self._look(), self._calls_until_next()])
        number, calls = self._ranks.sum(message).tolist()
        self._name = signal.Signals(number).name if number else ""
        self._calls_left = calls - 1
        return self._name

    def _calls_until_next(self) -> int:
        """Calls that fit between two messages, at the rate of those since the last one."""
        now = time.monotonic()
        seconds_a_call = (now - self._last) / self._calls
        self._last, self._calls = now, max(1, min(32, int(_TALK_S / max(seconds_a_call, 1e-6))))
        return self._calls

    def _look(self) -> int:
        """Number of the signal, 0 without one; the file system is asked a few times a second."""
        now = time.monotonic()
        if not self._number and now >= self._next_look:
            self._next_look = now + _POLL_S
            names = [name for path in self._paths if (name := asked(path))]
            self._number = int(signal.Signals[names[0]]) if names else 0
        return self._number
