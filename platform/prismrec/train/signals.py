"""SIGTERM and Ctrl-C as a request to save and leave, a file in the run's directory, or as an exception."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalAsker:
    """A signal handler: the first signal asks for a stop, the second ends the process at once.

    Args:
        path: the file to write the request to; None hands signals on to who handled them before.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.exit_code: int | None = None
        """What SIGTERM has ended the process with."""
        self._asked = False
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        previous = self._previous[signal.Signals(number)]
        if self.path is None and callable(previous):
            previous(number, frame)
        elif self.path is None or self._asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            self.exit_code = 128 + number
            raise SystemExit(self.exit_code)
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
    except SystemExit:
        if asker.exit_code is not None:  # out of `ray.get` the exception comes with another one
            raise SystemExit(asker.exit_code) from None
        raise
    finally:
        asker.remove()
