"""Several steps' batches at once: column copies of many rows, so that a step is a view."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismrec.data.batch import Batch, KeyedIds, jagged_ids
from prismrec.data.columns import IdColumn, ReadColumns
from prismrec.data.encode.ids import row_ids
from prismrec.data.order import Part, Tile, tiles
from prismrec.data.rows import Bag, Floats, Ints, Rows

Counts = NDArray[np.int64]


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
        self._batch_rows = batch_rows
        tasks, dense = len(columns.labels), len(columns.dense)
        num_ints = len(self._singles) + len(columns.keys)
        self._ints = np.empty((steps, num_ints, batch_rows), np.int64)
        self._floats = np.empty((steps, dense + 2 * tasks, batch_rows), np.float32)
        self._weights = np.ones((steps, tasks, batch_rows), np.float32)
        bagged = steps if self._bags else 1  # without bags all lengths are 1, in every step
        self._lengths = np.ones((bagged, len(columns.sparse), batch_rows), np.int32)
        self._segments: list[list[list[tuple[Ints, Floats | None]]]] = [
            [[] for _ in self._bags] for _ in range(steps)
        ]
        self.unknown: Counts = np.zeros((steps, len(columns.sparse)), np.int64)
        """(S, F) ids that went to the unknown row."""
        self.missing: Counts = np.zeros((steps, dense), np.int64)
        """(S, N) dense values that were missing."""
        self._place = {each.feature: at for at, each in enumerate(columns.sparse)}

    def put(self, rows: Rows, span: tuple[int, int], part: Part, offset: int) -> None:
        """Copy `rows[span[0]:span[1]]`, whose first row is the stream's row `offset` of this block."""
        first, stop = span
        for tile in tiles(part, offset, stop - first):
            for at, column in enumerate(rows.ints):
                self._put_ints(at, column[first:stop], tile)
            for at, values in enumerate(rows.floats):
                self._put_floats(at, values[first:stop], tile)
        for at, bag in enumerate(rows.bags):
            self._put_bag(at, bag.copy(first, stop), part, offset)

    def pad(self, last: Rows, part: Part, offset: int, count: int) -> None:
        """Fill up with copies of one row that count for nothing."""
        unknown, missing = self.unknown.copy(), self.missing.copy()
        self.put(last.repeat(count), (0, count), part, offset)
        self.unknown[:], self.missing[:] = unknown, missing
        first_valid = len(self._columns.dense) + len(self._columns.labels)
        for tile in tiles(part, offset, count):
            self._weights[tile.steps, :, tile.columns] = 0
            self._floats[tile.steps, first_valid:, tile.columns] = 0

    def batch(self, step: int) -> Batch:
        """The batch of one step; it shares the block's memory."""
        tasks, dense = len(self._columns.labels), len(self._columns.dense)
        floats = torch.from_numpy(self._floats[step])
        labels, valid = floats[dense : dense + tasks], floats[dense + tasks :]
        keys = iter(torch.from_numpy(self._ints[step, len(self._singles) :]))
        chosen = (self._columns.domain, self._columns.group, self._columns.time)
        none = torch.zeros(self._batch_rows, dtype=torch.int64)
        domain, group, time = (none if name is None else next(keys) for name in chosen)
        return Batch(
            sparse=self._ids_of_bags(step) if self._bags else self._ids_of_singles(step),
            dense=floats[:dense].t(),
            labels=labels.t().contiguous(),
            valid=valid.t().contiguous(),
            weights=torch.from_numpy(self._weights[step]).t().contiguous(),
            domain=domain,
            group=group,
            time=time,
        )

    def _put_ints(self, at: int, column: Ints, tile: Tile) -> None:
        source = tile.shape(column)
        target = self._ints[tile.steps, at, tile.columns]
        if at >= len(self._singles):
            target[...] = source
            return
        feature = self._singles[at]
        ids, unknown = row_ids(source, feature.num_rows, feature.hash_seed)
        target[...] = ids
        if unknown is not None:
            self.unknown[tile.steps, self._place[feature.feature]] += unknown.sum(axis=1)

    def _put_floats(self, at: int, column: Floats, tile: Tile) -> None:
        source = tile.shape(column)
        target = self._floats[tile.steps, at, tile.columns]
        target[...] = source
        if at < len(self._columns.dense) and np.isnan(
            source.min()
        ):  # one NaN makes the minimum NaN
            missing = np.isnan(target)
            target[missing] = 0
            self.missing[tile.steps, at] += missing.sum(axis=1)

    def _put_bag(self, at: int, bag: Bag, part: Part, offset: int) -> None:
        feature = self._bags[at]
        place = self._place[feature.feature]
        ids, unknown = row_ids(bag.values, feature.num_rows, feature.hash_seed)
        lengths = np.diff(bag.offsets)
        for tile in tiles(part, offset, len(lengths)):
            self._lengths[tile.steps, place, tile.columns] = tile.shape(lengths)
            for step in range(tile.steps.start, tile.steps.stop):
                row = tile.first + (step - tile.steps.start) * tile.width
                here = slice(bag.offsets[row + tile.low], bag.offsets[row + tile.high])
                weights = None if bag.weights is None else bag.weights[here]
                self._segments[step][at].append((ids[here], weights))
                if unknown is not None:
                    self.unknown[step, place] += unknown[here].sum()

    def _ids_of_singles(self, step: int) -> KeyedIds:
        """The sparse features, where each is one id a row."""
        count, rows = len(self._singles), self._batch_rows
        return jagged_ids(
            [each.feature for each in self._singles],
            torch.from_numpy(self._ints[step, :count].reshape(-1)),
            torch.from_numpy(self._lengths.reshape(-1)),
            [rows] * count,
        )

    def _ids_of_bags(self, step: int) -> KeyedIds:
        """The sparse features, where some are bags."""
        values: list[Ints] = []
        weights: list[Floats] = []
        counts = []
        ids, bags = iter(self._ints[step]), iter(self._segments[step])
        for feature in self._columns.sparse:
            parts = _parts(feature, next(bags) if feature.is_bag else [(next(ids), None)])
            values += (part for part, _ in parts)
            weights += (weight for _, weight in parts)
            counts.append(sum(len(part) for part, _ in parts))
        weighted = any(feature.weights is not None for feature in self._columns.sparse)
        return jagged_ids(
            [each.feature for each in self._columns.sparse],
            _joined(values),
            torch.from_numpy(self._lengths[step].reshape(-1)),
            counts,
            _joined(weights) if weighted else None,
        )


def _parts(
    feature: IdColumn, segments: list[tuple[Ints, Floats | None]]
) -> list[tuple[Ints, Floats]]:
    """Segments with weight 1 where a feature has none."""
    one = np.float32(1)
    return [
        (ids, np.broadcast_to(one, ids.shape) if weights is None else weights)
        for ids, weights in segments
    ]


def _joined(parts: list[Ints] | list[Floats]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
