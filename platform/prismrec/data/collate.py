"""Several steps' batches at once: column copies of many rows, so that a step is a view."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from prismrec.data.batch import Batch, KeyedIds, jagged_ids
from prismrec.data.columns import IdColumn, ReadColumns
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.order import Part, Tile, tiles
from prismrec.data.rows import Bag, Floats, Ints, Rows

Counts = NDArray[np.int64]
Blank = NDArray[np.bool_]
"""(S, B) which rows of a tile could not be decoded."""


class Block:
    """The batches of S consecutive steps of one rank, B rows each.

    Args:
        columns: what a batch holds.
        steps: S.
        batch_rows: B.
    """

    def __init__(self, columns: ReadColumns, steps: int, batch_rows: int) -> None:
        self._columns = columns
        self._singles, self._bags = columns.singles, columns.bags
        self._code_places, self._num_codes = columns.code_places, len(columns.codes)
        self._batch_rows = batch_rows
        tasks, dense = len(columns.labels), len(columns.dense)
        widths = [each.encoder.rows_per_id * batch_rows for each in self._singles]
        self._starts = [0, *itertools.accumulate(widths)]
        self._ids = np.empty((steps, self._starts[-1]), np.int64)
        self._keys = np.empty((steps, len(columns.keys), batch_rows), np.int64)
        self._weighted = list(columns.weighted)
        floats = dense + 2 * tasks + len(self._weighted)
        self._row_weights = floats if columns.is_weighed else None
        self._floats = np.empty((steps, floats, batch_rows), np.float32)
        self._weights = np.ones((steps, tasks, batch_rows), np.float32)
        bagged = steps if self._bags else 1  # without bags all steps have the same lengths
        self._lengths = np.empty((bagged, len(columns.sparse), batch_rows), np.int32)
        self._lengths[:] = [[each.encoder.rows_per_id] for each in columns.sparse]
        self._segments: list[list[list[tuple[Ints, Floats | None]]]] = [
            [[] for _ in self._bags] for _ in range(steps)
        ]
        self.seen: Counts = np.zeros((steps, len(columns.sparse)), np.int64)
        """(S, F) ids."""
        self.unknown: Counts = np.zeros((steps, len(columns.sparse)), np.int64)
        """(S, F) those of them that have no row of their own."""
        self.null: Counts = np.zeros((steps, len(columns.sparse)), np.int64)
        """(S, F) those of the unknown that are missing."""
        self.missing: Counts = np.zeros((steps, dense), np.int64)
        """(S, N) dense values that were missing."""
        self._place = {each.feature: at for at, each in enumerate(columns.sparse)}
        singles, bags = itertools.count(), itertools.count()
        self._at = [next(bags if each.is_bag else singles) for each in columns.sparse]
        self._is_weighted = any(each.weights is not None for each in columns.sparse)
        first_sequence = sum(not each.is_sequence for each in columns.sparse)  # they come last
        first_managed = sum(not each.is_managed for each in columns.sparse[:first_sequence])
        self._fixed = slice(0, first_managed)
        self._managed = slice(first_managed, first_sequence)
        self._sequence = slice(first_sequence, len(columns.sparse))
        self._single_places = [self._place[each.feature] for each in self._singles]

    def put(self, rows: Rows, span: tuple[int, int], part: Part, offset: int) -> None:
        """Copy `rows[span[0]:span[1]]`, whose first row is the stream's row `offset` of this block."""
        first, stop = span
        for tile in tiles(part, offset, stop - first):
            blank = self._put_weights(rows, span, tile)
            for at, source in enumerate(self._code_places):
                self._put_ids(at, rows.ints[source][first:stop], tile, blank)
            for at, column in enumerate(rows.ints[self._num_codes :]):
                self._keys[tile.steps, at, tile.columns] = tile.shape(column[first:stop])
            self.seen[tile.steps, self._single_places] += tile.high - tile.low
            if blank is not None:
                self.seen[tile.steps, self._single_places] -= blank.sum(axis=1, keepdims=True)
            for at, values in enumerate(rows.floats[: self._row_weights]):
                self._put_floats(at, values[first:stop], tile, blank)
        for at, bag in enumerate(rows.bags):
            self._put_bag(at, bag.copy(first, stop), part, offset)

    def pad(self, last: Rows, part: Part, offset: int, count: int) -> None:
        """Fill up with copies of one row that count for nothing."""
        counts = (self.seen, self.unknown, self.null, self.missing)
        before = [each.copy() for each in counts]
        self.put(last.repeat(count), (0, count), part, offset)
        for each, value in zip(counts, before, strict=True):
            each[:] = value
        tasks = len(self._columns.labels)
        first_valid = len(self._columns.dense) + tasks
        for tile in tiles(part, offset, count):
            self._weights[tile.steps, :, tile.columns] = 0
            self._floats[tile.steps, first_valid : first_valid + tasks, tile.columns] = 0

    def batch(self, step: int) -> Batch:
        """The batch of one step; it shares the block's memory."""
        tasks, dense = len(self._columns.labels), len(self._columns.dense)
        floats = torch.from_numpy(self._floats[step])
        labels, valid, _ = floats[dense:].tensor_split([tasks, 2 * tasks])
        keys = iter(torch.from_numpy(self._keys[step]))
        chosen = (self._columns.domain, self._columns.group, self._columns.time)
        none = torch.zeros(self._batch_rows, dtype=torch.int64)
        domain, group, time = (none if name is None else next(keys) for name in chosen)
        return Batch(
            sparse=self._keyed(step, self._fixed, self._is_weighted),
            dense=floats[:dense].t(),
            labels=labels.t().contiguous(),
            valid=valid.t().contiguous(),
            weights=torch.from_numpy(self._weights[step]).t().contiguous(),
            domain=domain,
            group=group,
            time=time,
            managed=self._keyed(step, self._managed, self._is_weighted)
            if _has_any(self._managed)
            else None,
            sequence=self._keyed(step, self._sequence, False) if _has_any(self._sequence) else None,
            propensity=self._propensity(floats),
        )

    def _propensity(self, floats: torch.Tensor) -> torch.Tensor | None:
        """(B, T) weights of one step's rows, 1 for tasks without; None where no task has some."""
        if not self._weighted:
            return None
        weights = torch.ones(self._batch_rows, len(self._columns.labels))
        weights[:, self._weighted] = floats[-len(self._weighted) :].t()
        return weights

    def _put_weights(self, rows: Rows, span: tuple[int, int], tile: Tile) -> Blank | None:
        """Weights of rows that may have been passed over; which were, None where none was."""
        if self._row_weights is None:
            return None
        weights = tile.shape(rows.floats[self._row_weights][span[0] : span[1]])
        self._weights[tile.steps, :, tile.columns] = weights[:, None]
        return weights == 0 if weights.min() == 0 else None

    def _put_ids(self, at: int, column: Ints, tile: Tile, blank: Blank | None) -> None:
        source = tile.shape(column)
        feature, start = self._singles[at], self._starts[at]
        rows, unknown = feature.encoder(source)
        width = feature.encoder.rows_per_id
        first, stop = (start + width * edge for edge in (tile.columns.start, tile.columns.stop))
        self._ids[tile.steps, first:stop] = rows
        if unknown is not None:
            place, null = self._place[feature.feature], source == NULL_ID
            if blank is not None:
                unknown, null = unknown & ~blank, null & ~blank
            self.unknown[tile.steps, place] += unknown.sum(axis=1)
            self.null[tile.steps, place] += null.sum(axis=1)

    def _put_floats(self, at: int, column: Floats, tile: Tile, blank: Blank | None) -> None:
        source = tile.shape(column)
        target = self._floats[tile.steps, at, tile.columns]
        target[...] = source
        if at < len(self._columns.dense) and np.isnan(
            source.min()
        ):  # one NaN makes the minimum NaN
            missing = np.isnan(target)
            target[missing] = 0
            missing = missing if blank is None else missing & ~blank
            self.missing[tile.steps, at] += missing.sum(axis=1)

    def _put_bag(self, at: int, bag: Bag, part: Part, offset: int) -> None:
        feature = self._bags[at]
        place = self._place[feature.feature]
        rows, unknown = feature.encoder(bag.values)
        width, weights = feature.encoder.rows_per_id, bag.weights
        if weights is not None and width > 1:
            weights = weights.repeat(width)
        lengths = np.diff(bag.offsets)
        for tile in tiles(part, offset, len(lengths)):
            self._lengths[tile.steps, place, tile.columns] = width * tile.shape(lengths)
            for step in range(tile.steps.start, tile.steps.stop):
                row = tile.first + (step - tile.steps.start) * tile.width
                here = slice(bag.offsets[row + tile.low], bag.offsets[row + tile.high])
                there = slice(width * here.start, width * here.stop)
                self._segments[step][at].append(
                    (rows[there], None if weights is None else weights[there])
                )
                self.seen[step, place] += here.stop - here.start
                if unknown is not None:
                    self.unknown[step, place] += unknown[here].sum()
                    self.null[step, place] += (bag.values[here] == NULL_ID).sum()

    def _keyed(self, step: int, chosen: slice, is_weighted: bool) -> KeyedIds:
        """Some sparse features that follow each other; without bags their ids lie so already."""
        features = self._columns.sparse[chosen]
        names = [each.feature for each in features]
        lengths = torch.from_numpy(self._lengths[step if self._bags else 0, chosen].reshape(-1))
        if not self._bags:
            starts = self._starts[chosen.start : chosen.stop + 1]
            ids = torch.from_numpy(self._ids[step, starts[0] : starts[-1]])
            return jagged_ids(names, ids, lengths, np.diff(starts).tolist())
        parts = [
            _parts(feature, self._of_feature(step, chosen.start + index))
            for index, feature in enumerate(features)
        ]
        return jagged_ids(
            names,
            _joined([ids for segments in parts for ids, _ in segments], np.int64),
            lengths,
            [sum(len(ids) for ids, _ in segments) for segments in parts],
            _joined([weights for segments in parts for _, weights in segments], np.float32)
            if is_weighted
            else None,
        )

    def _of_feature(self, step: int, index: int) -> list[tuple[Ints, Floats | None]]:
        """Ids of one sparse feature, with their weights if they have some."""
        at = self._at[index]
        if self._columns.sparse[index].is_bag:
            return self._segments[step][at]
        return [(self._ids[step, self._starts[at] : self._starts[at + 1]], None)]


def _has_any(chosen: slice) -> bool:
    return chosen.start < chosen.stop


def _parts(
    feature: IdColumn, segments: list[tuple[Ints, Floats | None]]
) -> list[tuple[Ints, Floats]]:
    """Segments with weight 1 where a feature has none."""
    one = np.float32(1)
    return [
        (ids, np.broadcast_to(one, ids.shape) if weights is None else weights)
        for ids, weights in segments
    ]


def _joined(parts: list[Ints] | list[Floats], data_type: DTypeLike) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, data_type), *parts]))
