"""A position in a stream that moves forward over decoded rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prismrec.data.groups import DecodedGroups
from prismrec.data.order import Part, Stream
from prismrec.data.rows import Bag, Rows, join


class Cursor:
    """Reads one stream from `position` on, holding at most one decoded row group.

    Args:
        stream: what is read.
        part: which of its rows go where in a batch.
        groups: decoded row groups, shared with the other cursors of the rank.
        position: first row of the stream that is read.
    """

    def __init__(self, stream: Stream, part: Part, groups: DecodedGroups, position: int) -> None:
        self.stream = stream
        self.part = part
        self.position = position
        self._groups = groups
        self._held: int | None = None
        self._window: tuple[int, int, Rows] | None = None
        self._room: Rows | None = None
        self._last: Rows | None = None

    def read(self, count: int) -> Iterator[tuple[Rows, int, int]]:
        """The next `count` rows, or as many as there are: chunks `rows[first:stop]`.

        A chunk may be looked at until the next one is asked for.
        """
        stop = min(self.position + count, self.stream.num_rows)
        while self.position < stop:
            if self.stream.shuffle is None:
                piece = self.stream.piece_at(self.position)
                rows = self._hold(int(self.stream.groups[piece]))
                shift = int(self.stream.starts[piece] - self.stream.firsts[piece])
                end = int(self.stream.ends[piece])
            else:
                shift, end, rows = self._open_window()
            until = min(end, stop)
            yield rows, self.position - shift, until - shift
            if until == self.stream.num_rows:
                self._last = rows.copy(until - 1 - shift, until - shift)
            self.position = until
            if until == end:
                self._close_chunk()

    def last(self) -> Rows:
        """The last row of the stream, alone: what a finished lane is padded with."""
        if self._last is None:
            end = self.stream.num_rows
            group, row = self.stream.locate(np.array([end - 1]))
            self._let_go()
            self._last = self._hold(int(group[0])).copy(int(row[0]), int(row[0]) + 1)
            self._let_go()
        return self._last

    def next_group(self) -> tuple[float, int] | None:
        """In how many steps this cursor will need another row group, and which."""
        stream = self.stream
        piece, at = self._next_piece(), self.position
        if piece == len(stream.groups):
            return None
        due = int(stream.starts[piece])
        if stream.shuffle is not None:
            due -= due % stream.shuffle.rows
        return max(0, due - at) / self.part.width, int(stream.groups[piece])

    def _next_piece(self) -> int:
        """The first piece that begins after everything that was decoded so far."""
        if self.position >= self.stream.num_rows:
            return len(self.stream.groups)
        if self._window is not None:
            at = self._window[1]
        elif self._held is not None:
            at = self.position
        else:
            return self.stream.piece_at(self.position)
        if at == self.stream.num_rows:
            return len(self.stream.groups)
        piece = self.stream.piece_at(at)
        return piece + 1 if self._held == self.stream.groups[piece] else piece

    def _open_window(self) -> tuple[int, int, Rows]:
        if self._window is not None:
            return self._window
        shuffle = self.stream.shuffle
        assert shuffle is not None
        start, stop, order = self.stream.window(self.position // shuffle.rows)
        pieces = range(self.stream.piece_at(start), self.stream.piece_at(stop - 1) + 1)
        if len(pieces) == 1:
            rows = self._hold(int(self.stream.groups[pieces[0]]))
            first = int(start - self.stream.starts[pieces[0]] + self.stream.firsts[pieces[0]])
        else:
            rows, first = self._gathered(pieces, start, stop), 0
        if self._room is None:
            self._room = rows.room(shuffle.rows)
        mixed = rows.take(first, order, self._room, self._groups.helper)
        if stop == self.stream.ends[pieces[-1]]:
            self._let_go()
        self._window = start, stop, mixed
        return self._window

    def _gathered(self, pieces: Sequence[int], start: int, stop: int) -> Rows:
        """Rows start..stop-1 of the stream, which lie in several row groups."""
        bags: list[tuple[Bag, ...]] = []
        for piece in pieces:
            rows = self._hold(int(self.stream.groups[piece]))
            room = self._groups.shared_room(rows, stop - start)
            first, before = int(self.stream.firsts[piece]), int(self.stream.starts[piece])
            low, high = max(start, before), min(stop, int(self.stream.ends[piece]))
            span = first + low - before, first + high - before
            rows.write(*span, room, low - start)
            bags.append(tuple(bag.copy(*span) for bag in rows.bags))
        return room.top(stop - start, tuple(join(some) for some in zip(*bags, strict=True)))

    def _close_chunk(self) -> None:
        if self.stream.shuffle is None:
            self._let_go()
        self._window = None

    def _hold(self, group: int) -> Rows:
        if self._held == group:
            rows = self._groups.acquire(group)
            self._groups.release(group)
            return rows
        self._let_go()
        rows = self._groups.acquire(group)
        self._held = group
        return rows

    def _let_go(self) -> None:
        if self._held is not None:
            self._groups.release(self._held)
            self._held = None
