"""SIGTERM and Ctrl-C as a request to save and leave.

A request is a file in the run's directory, so that whoever takes the signal, the process that
started the run or one of its workers, reaches all ranks wherever they are.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

from prismrec.train.process_group import Ranks

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.2
_TALK_S = 0.1


class SignalAsker:
    """A signal handler: the first signal asks for a stop, the second ends the process at once.

    Args:
        path: the file to write the request to; None hands signals on to who handled them before.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._asked = False
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        previous = self._previous[signal.Signals(number)]
        if self.path is None and callable(previous):
            previous(number, frame)
        elif self.path is None or self._asked:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        else:
            self._asked = True
            ask(self.path, signal.Signals(number))

    def install(self) -> None:
        """Handle SIGTERM and SIGINT of this process; only its main thread may call this."""
        for number in _SIGNALS:
            signal.signal(number, self)

    def remove(self) -> None:
        """Handle signals as before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def take_signals() -> None:
    """Have the main thread of this process, which calls this, take signals for `signals_ask`."""
    SignalAsker().install()


def ask(path: Path, number: signal.Signals) -> None:
    """Write a request; one that is there already stays as it is."""
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(number.name)


def asked(path: Path) -> str:
    """Name of the signal of a request, or an empty text where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


@contextlib.contextmanager
def signals_ask(path: Path) -> Iterator[None]:
    """SIGTERM and SIGINT of this process write a request while the context lasts.

    Where the process has a `SignalAsker` already, that one keeps its file, or gets this one if it
    has none. In a thread other than the main one, which can take no signals, an asker that the
    main thread installed earlier is the only one there can be.
    """
    present = signal.getsignal(signal.SIGTERM)
    if isinstance(present, SignalAsker):
        earlier, present.path = present.path, present.path or path
        try:
            yield
        finally:
            present.path = earlier
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asker = SignalAsker(path)
    asker.install()
    try:
        yield
    finally:
        asker.remove()


@contextlib.contextmanager
def signals_end() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, by an exception, wherever nothing else is asked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asker = SignalAsker()
    asker.install()
    try:
        yield
    finally:
        asker.remove()


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
