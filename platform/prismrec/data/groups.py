"""Decoded row groups in memory: shared by lanes, bounded in number, decoded ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from prismrec.data.rows import Rows

_THREADS = 2
"""Row groups decoded at a time; Arrow shares the columns of each out to all cores."""


class DecodedGroups:
    """Decoded row groups that some lane is reading, and some that are decoded ahead.

    One thread acquires, prefetches and releases.

    Args:
        decode: decodes a row group; called on the caller's thread or on one of its own.
        limit: most row groups that may be held at a time.
        ahead: most row groups that may be decoded before any lane needs them.
    """

    def __init__(self, decode: Callable[[int], Rows], limit: int, ahead: int) -> None:
        self._decode = decode
        self._limit = limit
        self._most_ahead = ahead
        self._held: dict[int, Rows] = {}
        self._users: dict[int, int] = {}
        self._ahead: dict[int, Future[Rows]] = {}
        self._room: Rows | None = None
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="prismrec-decode")
        self.helper = ThreadPoolExecutor(1, thread_name_prefix="prismrec-gather")
        """Gathers columns while the caller gathers others."""
        self.peak = 0
        """Most row groups that were in memory at a time, those decoded ahead included."""

    def __enter__(self) -> DecodedGroups:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.helper.shutdown(wait=True, cancel_futures=True)

    def __contains__(self, group: int) -> bool:
        """Whether a row group is decoded or being decoded."""
        return group in self._held or group in self._ahead

    @property
    def may_prefetch(self) -> bool:
        """Whether one more row group may be decoded ahead."""
        return len(self._ahead) < self._most_ahead

    def prefetch(self, group: int) -> None:
        """Begin to decode a row group; to be called where it `may_prefetch`."""
        self._ahead[group] = self._pool.submit(self._decode, group)

    def acquire(self, group: int) -> Rows:
        """The decoded rows of a row group, held until as many `release` calls."""
        if group not in self._held:
            if len(self._held) >= self._limit:
                raise RuntimeError(f"{self._limit} decoded row groups are held, and one more asked")
            started = self._ahead.pop(group, None)
            rows = self._decode(group) if started is None else started.result()
            self._held[group], self._users[group] = rows, 0
            self.peak = max(self.peak, len(self._held) + len(self._ahead))
        self._users[group] += 1
        return self._held[group]

    def release(self, group: int) -> None:
        """One lane needs the row group no more."""
        self._users[group] -= 1
        if self._users[group] == 0:
            del self._held[group], self._users[group]

    def shared_room(self, like: Rows, num_rows: int) -> Rows:
        """Memory in which one cursor at a time puts rows of several row groups together."""
        if self._room is None or self._room.num_rows < num_rows:
            self._room = like.room(num_rows)
        return self._room
