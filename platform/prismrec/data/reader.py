"""Batches of one rank from a data set: every row once, at any world size, from any state."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

import numpy as np

from prismrec.config import Recipe, UserError
from prismrec.data.ahead import ahead
from prismrec.data.batch import Batch
from prismrec.data.checks import check_labels, time_order
from prismrec.data.collate import Block
from prismrec.data.columns import read_columns
from prismrec.data.cursor import Cursor
from prismrec.data.decode import Decoder
from prismrec.data.encode.encoders import Encoder
from prismrec.data.filters import RowFilter, count_rows, row_filter
from prismrec.data.groups import DecodedGroups
from prismrec.data.lanes import ALONE, Lanes, ReaderState, Share
from prismrec.data.order import Part, Shuffle, Stream, cut
from prismrec.data.rows import Ints
from prismrec.data.skipped import Skipped, SkippedGroup
from prismrec.data.source import DataSource

_CHUNK_ROWS = 8192
"""Rows of a lane that are copied at a time: long enough for numpy, short enough for the cache."""

_AHEAD = 4
"""Row groups decoded before they are needed, where `data.open_lanes` leaves room: lanes of equal
size tend to need their next row group in the same step."""


class Reader:
    """Reads one split for one rank.

    Args:
        source: the data set.
        recipe: data, features and tasks.
        split: `train`, `valid` or `test`.
        encoders: of every sparse feature, see `encoders_of`.
        share: which rank of how many.
        training: rows come in `data.order` and negatives are sampled; else as the files lie.

    Raises:
        UserError: the recipe has no such split, a column is missing or of the wrong kind, or the
            files are not in the order of time that is asked for. But for the windows of a stream
            also: the split has fewer rows than lanes, or a label is null in every row.
    """

    def __init__(
        self,
        source: DataSource,
        recipe: Recipe,
        split: str,
        encoders: Mapping[str, Encoder],
        share: Share = ALONE,
        training: bool = False,
    ) -> None:
        self._data, self._seed = recipe.data, recipe.seed
        self._may_be_small = recipe.online is not None  # one window of a stream
        self.columns = read_columns(recipe, source, encoders, training)
        """What is decoded, and as what."""
        rows = _split(recipe, split, source)
        self._skipped = Skipped(source) if self.columns.is_weighed else None
        self._counts = count_rows(source, rows, self._skipped)
        self._kind = recipe.data.order if training else "file"
        self.lanes = self._cut_lanes(split)
        """The lanes of the split, those of other ranks included."""
        self._owned = self._own(share)
        if not self._may_be_small:
            check_labels(source, rows, self._counts, self.columns.labels, self._skipped)
        time = self.columns.time if self._kind == "time" else None
        self._order = time_order(source, self._counts, time) if time else _file_order(self._counts)
        self._decoder = Decoder(
            source, self.columns, rows, self._counts, self._seed, time, self._skipped
        )
        self._source = source
        self.unknown_ids = {each.feature: 0 for each in self.columns.sparse}
        """By feature, ids of this rank's batches so far that have no row of their own."""
        self.missing_ids = dict.fromkeys(self.unknown_ids, 0)
        """By feature, those of the unknown ids that are missing."""
        self.seen_ids = dict.fromkeys(self.unknown_ids, 0)
        """By feature, all ids of this rank's batches so far."""
        self.missing_values = dict.fromkeys(self.columns.dense, 0)
        """By dense column, values of this rank's batches so far that were missing."""
        self.peak_groups = 0
        """Most row groups that this rank held decoded at a time."""

    @property
    def num_rows(self) -> int:
        """Rows of the split, on all ranks."""
        return self.lanes.num_rows

    @property
    def skipped(self) -> list[SkippedGroup]:
        """Row groups of this rank's batches so far, and of those made ahead, that cannot be decoded."""
        return [] if self._skipped is None else self._skipped.groups(self._counts)

    @property
    def digest(self) -> str:
        """Equal where the same rows lie in the same lanes: 16 hexadecimal digits."""
        text = self._source.fingerprint.encode() + self._counts.astype("<i8").tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def num_steps(self) -> int:
        """Steps of an epoch, the same on every rank."""
        return self.lanes.steps([0] * self.lanes.num_lanes)

    @property
    def batch_rows(self) -> int:
        """Rows of every batch of this rank, padding included."""
        return len(self._owned) * self.lanes.step_rows

    def epoch(
        self, epoch: int = 0, offsets: Sequence[int] | None = None
    ) -> Generator[tuple[Batch, ReaderState], None, None]:
        """The batches of one epoch, each with the state after it.

        Decoding runs ahead on threads, which end with the iterator.

        Args:
            epoch: its number, which the shuffled order depends on.
            offsets: of all lanes, from a `ReaderState`; the beginning if not given.

        Raises:
            UserError: the offsets are not of these lanes, or a row group cannot be decoded or
                holds what it must not.
        """
        start = tuple(offsets) if offsets is not None else (0,) * self.lanes.num_lanes
        self.lanes.check(start)
        produced = self._produce(epoch, start)
        with closing(ahead(produced, self._data.prefetch)) as batches:
            for step, (batch, *counts) in enumerate(batches, 1):
                for totals, found in zip(
                    (self.seen_ids, self.unknown_ids, self.missing_ids, self.missing_values),
                    counts,
                    strict=True,
                ):
                    for name, count in zip(totals, found, strict=True):
                        totals[name] += int(count)
                yield batch, ReaderState(epoch, self.lanes.after(start, step))

    def rows_at(self, epoch: int, lane: int, start: int, stop: int) -> tuple[Ints, Ints, Ints]:
        """Where rows of a lane's reading order lie: file, row group of the file, row of that.

        Args:
            epoch: whose order is meant.
            lane: any lane, of any rank.
            start: first position.
            stop: the position after the last.
        """
        positions = np.arange(start, stop)
        if self.lanes.dealt:
            rounds, rest = np.divmod(positions, self.lanes.step_rows)
            positions = (rounds * self.lanes.num_lanes + lane) * self.lanes.step_rows + rest
        groups, rows = self._stream(epoch, lane).locate(positions)
        for group in np.unique(groups).tolist():
            here = groups == group
            rows[here] = self._decoder.row_numbers(group)[rows[here]]
        return self._source.group_file[groups], self._source.group_index[groups], rows

    def _cut_lanes(self, split: str) -> Lanes:
        num_rows, lanes = int(self._counts.sum()), self._data.lanes
        if num_rows < lanes and not (self._may_be_small and num_rows):
            raise UserError(
                f"data.lanes: the split '{split}' has {num_rows} rows for {lanes} lanes; "
                f"loosen data.splits.{split} or use fewer lanes"
            )
        dealt = self._kind == "time" or num_rows < lanes
        return Lanes(num_rows, lanes, self._data.global_batch_size // lanes, dealt)

    def _own(self, share: Share) -> range:
        owned = self.lanes.owned(share)
        if len(owned) > self._data.open_lanes and not self.lanes.dealt:
            raise UserError(
                f"data.open_lanes: a rank of {share.world_size} owns {len(owned)} lanes and may hold "
                f"only {self._data.open_lanes} row groups; use more ranks or raise data.open_lanes"
            )
        return owned

    def _stream(self, epoch: int, lane: int) -> Stream:
        shuffle = None
        if self._kind == "shuffle":
            shuffle = Shuffle(self._seed, epoch, self._data.shuffle_rows)
        return cut(self._counts, self._order, self.lanes, lane, shuffle)

    def _cursors(self, epoch: int, offsets: tuple[int, ...], groups: DecodedGroups) -> list[Cursor]:
        b, owned = self.lanes.step_rows, self._owned
        if self.lanes.dealt:
            part = Part(b * self.lanes.num_lanes, b * owned.start, b * owned.stop, 0)
            return [Cursor(self._stream(epoch, 0), part, groups, sum(offsets))]
        return [
            Cursor(self._stream(epoch, lane), Part(b, 0, b, b * column), groups, offsets[lane])
            for column, lane in enumerate(owned)
        ]

    def _produce(
        self, epoch: int, offsets: tuple[int, ...]
    ) -> Generator[tuple[Batch, Ints, Ints, Ints, Ints], None, None]:
        """Batches with their counts of ids, unknown and missing ones, missing values; runs on a thread."""
        left = self.lanes.steps(offsets)
        per_block = max(1, _CHUNK_ROWS // self.lanes.step_rows)
        held = 1 if self.lanes.dealt else len(self._owned)
        in_advance = min(_AHEAD, self._data.open_lanes + 1 - held)
        with DecodedGroups(self._decoder.decode, held, in_advance) as groups:
            cursors = self._cursors(epoch, offsets, groups)
            while left:
                steps = min(per_block, left)
                block = Block(self.columns, steps, self.batch_rows)
                for cursor in cursors:
                    _fill(block, steps, cursor, cursors, groups)
                self.peak_groups = max(self.peak_groups, groups.peak)
                for step in range(steps):
                    ids = block.seen[step], block.unknown[step], block.null[step]
                    yield block.batch(step), *ids, block.missing[step]
                left -= steps


def _fill(
    block: Block, steps: int, cursor: Cursor, cursors: Sequence[Cursor], groups: DecodedGroups
) -> None:
    """Put one cursor's rows of the block's steps into it, and padding after its last row."""
    count, done = steps * cursor.part.width, 0
    for rows, first, stop in cursor.read(count):
        _prefetch(cursors, groups)
        block.put(rows, (first, stop), cursor.part, done)
        done += stop - first
    if done < count:
        block.pad(cursor.last(), cursor.part, done, count - done)


def _prefetch(cursors: Sequence[Cursor], groups: DecodedGroups) -> None:
    """Decode the row groups that are needed next, of those that nobody holds."""
    if not groups.may_prefetch:
        return
    coming = [coming for cursor in cursors if (coming := cursor.next_group()) is not None]
    for _, group in sorted(coming, key=lambda pair: pair[0]):
        if groups.may_prefetch and group not in groups:
            groups.prefetch(group)


def _file_order(counts: Ints) -> Ints:
    return np.arange(len(counts))


def _split(recipe: Recipe, split: str, source: DataSource) -> RowFilter:
    conditions = getattr(recipe.data.splits, split)
    if conditions is None:
        raise UserError(
            f"data.splits.{split}: the recipe does not say which rows it has; give a list of "
            "conditions, [] for every row"
        )
    return row_filter(conditions, source, f"data.splits.{split}")
