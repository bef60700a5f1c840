"""SIGTERM and Ctrl-C as a request to save and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Set once somebody asked the run to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal_name = ""

    def set(self, signal_name: str) -> None:
        """Ask for the stop."""
        self.signal_name = signal_name
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A stop request that SIGTERM and SIGINT set while the context lasts.

    A second signal is handled as it was before, so an impatient Ctrl-C still ends the process. In a
    thread other than the main one, which can take no signals, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, frame: object) -> None:
        request.set(signal.Signals(number).name)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
