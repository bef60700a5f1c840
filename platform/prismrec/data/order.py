"""In which order a lane's rows are read: streams of row-group pieces, shuffled or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prismrec.data.lanes import Lanes

Ints = NDArray[np.int64]

_PIECES, _WINDOW = 1, 2
"""Keep the generators of a lane's pieces and of its windows apart."""


@dataclass(frozen=True)
class Shuffle:
    """What a shuffled order depends on.

    Args:
        seed: of the run.
        epoch: each has an order of its own.
        rows: rows of a window, which are permuted among themselves.
    """

    seed: int
    epoch: int
    rows: int


@dataclass(frozen=True)
class Stream:
    """Rows in the order in which they are read, as pieces of row groups.

    Args:
        groups: (P,) row group of every piece.
        firsts: (P,) first filtered row of the piece within its row group.
        ends: (P,) rows of the stream up to the end of the piece.
        lane: seeds the windows.
        shuffle: permutes rows within windows; None leaves them in place.
    """

    groups: Ints
    firsts: Ints
    ends: Ints
    lane: int
    shuffle: Shuffle | None

    @cached_property
    def starts(self) -> Ints:
        """(P,) rows of the stream before each piece."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])

    @property
    def num_rows(self) -> int:
        """Rows of the stream."""
        return int(self.ends[-1])

    def piece_at(self, position: int) -> int:
        """The piece that holds the row at `position` before windows are permuted."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def window(self, number: int) -> tuple[int, int, Ints]:
        """First position of a window, the position after it, and the order of its rows."""
        if self.shuffle is None:
            raise ValueError("a stream that is not shuffled has no windows")
        start = number * self.shuffle.rows
        stop = min(start + self.shuffle.rows, self.num_rows)
        key = [self.shuffle.seed, self.shuffle.epoch, self.lane, _WINDOW, number]
        return start, stop, np.random.default_rng(key).permutation(stop - start)

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Row group, and filtered row within it, at positions of the stream."""
        if self.shuffle is not None and len(positions):
            positions = positions.copy()
            windows = positions // self.shuffle.rows
            for number in np.unique(windows).tolist():
                start, _, order = self.window(number)
                here = windows == number
                positions[here] = start + order[positions[here] - start]
        pieces = np.searchsorted(self.ends, positions, side="right")
        rows = self.firsts[pieces] + positions - self.starts[pieces]
        return self.groups[pieces], rows


def cut(counts: Ints, order: Ints, lanes: Lanes, lane: int, shuffle: Shuffle | None) -> Stream:
    """The stream of one lane, or of all of them where rows are dealt.

    Args:
        counts: filtered rows of every row group.
        order: row groups in the order in which they lie.
        lanes: the lanes.
        lane: one of them; not used where rows are dealt, the stream is then all rows.
        shuffle: permutes the pieces of the lane, and rows within windows.
    """
    ends = np.cumsum(counts[order])
    first, last = 0, lanes.num_rows
    if not lanes.dealt:
        first = lanes.start(lane)
        last = first + lanes.lengths[lane]
    starts = ends - counts[order]
    low, high = np.maximum(starts, first), np.minimum(ends, last)
    some = np.flatnonzero(high > low)
    if shuffle is not None:
        key = [shuffle.seed, shuffle.epoch, lane, _PIECES]
        some = np.random.default_rng(key).permutation(some)
    return Stream(
        order[some],
        (low - starts)[some],
        np.cumsum((high - low)[some]),
        lane,
        shuffle,
    )


@dataclass(frozen=True)
class Part:
    """The rows of a stream that a rank takes into its batches, and where they go.

    Args:
        width: rows of the stream in a step.
        low: first of them that this rank takes.
        high: the one after the last.
        column: row of the batch where they go.
    """

    width: int
    low: int
    high: int
    column: int


@dataclass(frozen=True)
class Tile:
    """Rows of a chunk that fill a rectangle of a block, row-major: `source[first:first + n]`,
    shaped (steps, width), columns low..high-1, goes to steps x columns of the block.

    Args:
        steps: steps of the block.
        columns: rows of each step's batch.
        first: first row of the chunk.
        width: rows of the chunk in each step.
        low: first of them that is taken.
        high: the one after the last.
    """

    steps: slice
    columns: slice
    first: int
    width: int
    low: int
    high: int

    def shape(self, source: NDArray) -> NDArray:
        """The rows of a column of the chunk as (steps, columns)."""
        count = self.steps.stop - self.steps.start
        flat = source[self.first : self.first + count * self.width]
        return flat.reshape(count, self.width)[:, self.low : self.high]


def tiles(part: Part, offset: int, rows: int) -> Iterator[Tile]:
    """Rectangles filled by `rows` rows of a stream, the first at `offset` rows from the block's.

    At most three: the rest of a step, whole steps, the beginning of a step.
    """
    done = 0
    while done < rows:
        step, phase = divmod(offset + done, part.width)
        left = rows - done
        if phase or left < part.width:
            count, width = 1, min(part.width - phase, left)
        else:
            count, width = left // part.width, part.width
        low, high = max(part.low - phase, 0), min(part.high - phase, width)
        if low < high:
            column = part.column + phase + low - part.low
            columns = slice(column, column + high - low)
            yield Tile(slice(step, step + count), columns, done, width, low, high)
        done += count * width
