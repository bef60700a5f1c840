"""A queue that hands records to a slow or absent server without holding up the caller."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from prismrec.config.redact import without_passwords

_log = logging.getLogger(__name__)

Send = Callable[[], None]
"""Delivers one record; raises when it could not."""


class RejectedError(Exception):
    """The server understood a record and will never take it."""


class Delivery:
    """Sends records from a thread, in the order they were put, each until it is taken.

    A record that is rejected is dropped with a warning; any other failure is taken for a server
    that is away and tried again, after 0.5 s, 1 s, and so on up to `longest_wait_s`.

    Args:
        name: of the thread.
        longest_wait_s: seconds between two attempts at most.
    """

    def __init__(self, name: str, longest_wait_s: float = 30.0) -> None:
        self._records: deque[Send] = deque()
        self._longest_wait_s = longest_wait_s
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, send: Send) -> None:
        """Add a record; returns at once.

        Raises:
            ValueError: the queue is closed.
        """
        with self._changed:
            if self._is_closing:
                raise ValueError("records were put after the tracker was closed")
            self._records.append(send)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> int:
        """Wait until every record is delivered; the number of those that were not in time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._records, timeout_s)
            left = len(self._records)
            self._is_stopped = True
            self._changed.notify_all()
        if not left:
            self._thread.join(timeout_s)
        return left

    def left(self) -> list[Send]:
        """What was put and not delivered; for use after `close`."""
        with self._changed:
            return list(self._records)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is delivered; whether it was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._records, timeout_s)

    def _run(self) -> None:
        wait_s = 0.5
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._is_closing)
                if not self._records or self._is_stopped:
                    return
                send = self._records[0]
            if self._deliver(send):
                wait_s = 0.5
                with self._changed:
                    self._records.popleft()
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopped, wait_s)
                wait_s = min(2 * wait_s, self._longest_wait_s)

    def _deliver(self, send: Send) -> bool:
        started = time.monotonic()
        try:
            send()
        except RejectedError as error:
            _log.warning(
                "the tracking server refused a record, which is dropped: %s",
                without_passwords(error),
            )
        except Exception as error:  # noqa: BLE001  whatever a driver raises, training goes on
            spent_s = time.monotonic() - started
            _log.info(
                "the tracking server did not answer in %.1f s: %s",
                spent_s,
                without_passwords(error),
            )
            return False
        return True
