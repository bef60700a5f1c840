"""Values to dense ids: the sorted distinct values of a column are its ids 0..n-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

DIRECTORY = "_vocabulary"
"""Beside the rows of a data set: one Parquet file (`id`, `value`) per id column."""
MISSING = -1
"""Stands in a bag for a value without an id; a reader sends it to the unknown row."""


class Vocabulary:
    """A dense id for every value, by the order of the values.

    Args:
        values: distinct, sorted, without null; the value of id i stands at i.
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self._is_number = pa.types.is_integer(values.type)
        self._sorted = values.to_numpy() if self._is_number else None

    @classmethod
    def of(cls, *columns: pa.Array | pa.ChunkedArray) -> Vocabulary:
        """All values of the columns, list columns included."""
        counts = ValueCounts()
        for column in columns:
            counts.update(column)
        return counts.vocabulary()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_ids(self) -> int:
        """What a schema says for the column: at least 1, even where every value is missing."""
        return max(1, len(self.values))

    def encode(self, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Ids of a column of values as int64; null where there is no value or it has no id.

        Integers may be of another width than those of the vocabulary.
        """
        column = _one_chunk(column)
        if self._sorted is None or not pa.types.is_integer(column.type):
            return pc.index_in(column, value_set=self.values).cast(pa.int64())
        raw = column.fill_null(0).to_numpy()
        limits = np.iinfo(self._sorted.dtype)
        fits = (raw >= limits.min) & (raw <= limits.max)
        raw = raw.astype(self._sorted.dtype)
        ids = np.searchsorted(self._sorted, raw)
        inside = np.minimum(ids, max(len(self._sorted) - 1, 0))
        known = self._sorted[inside] == raw if len(self._sorted) else np.zeros(len(raw), bool)
        known &= fits & column.is_valid().to_numpy(zero_copy_only=False)
        return pa.array(ids.astype(np.int64), mask=~known)

    def encode_bags(self, column: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Ids of a list column; a value without an id becomes -1, null stays null."""
        column = _one_chunk(column)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = self.encode(pc.list_flatten(column)).fill_null(MISSING)
        bags = pa.ListArray.from_arrays(
            pa.array(offsets), ids, mask=column.is_null() if column.null_count else None
        )
        return bags

    def write(self, directory: Path, column: str) -> None:
        """Write the vocabulary of a column beside the rows of the data set in `directory`."""
        folder = directory / DIRECTORY
        folder.mkdir(exist_ok=True)
        ids = pa.array(np.arange(len(self.values), dtype=np.int64))
        pq.write_table(pa.table({"id": ids, "value": self.values}), folder / f"{column}.parquet")

    @classmethod
    def read(cls, directory: Path, column: str) -> Vocabulary:
        """The vocabulary that was written for a column."""
        table = pq.read_table(directory / DIRECTORY / f"{column}.parquet")
        return cls(_one_chunk(table["value"]))


class ValueCounts:
    """Counts values over blocks of rows, in memory proportional to the distinct values."""

    def __init__(self) -> None:
        self._counted: pa.Table | None = None
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0

    def update(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Count the values of one block; of a list column, those in the lists. Null is no value."""
        column = _one_chunk(column)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.list_flatten(column)
        if pa.types.is_integer(column.type):
            column = column.cast(pa.int64())
        pairs = pc.value_counts(column.drop_null())
        self._waiting.append(pa.table({"value": pairs.field(0), "count": pairs.field(1)}))
        self._rows_waiting += len(pairs)
        # Merging only when as much waits as is merged keeps the total work n log n.
        if self._rows_waiting > max(2**20, 0 if self._counted is None else len(self._counted)):
            self._merge()

    def join(self, other: ValueCounts) -> None:
        """Count what another one has counted."""
        other._merge()
        if other._counted is not None:
            self._waiting.append(other._counted)
            self._merge()

    def _merge(self) -> None:
        tables = self._waiting if self._counted is None else [self._counted, *self._waiting]
        if not tables:
            return
        merged = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
        self._counted = pa.table({"value": merged["value"], "count": merged["count_sum"]})
        self._waiting, self._rows_waiting = [], 0

    def vocabulary(self, min_count: int = 1) -> Vocabulary:
        """Ids for the values seen at least `min_count` times."""
        self._merge()
        if self._counted is None:
            return Vocabulary(pa.array([], pa.string()))
        kept = self._counted.filter(pc.field("count") >= min_count)
        return Vocabulary(_one_chunk(kept.sort_by("value")["value"]))


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.combine_chunks() if column.num_chunks else pa.array([], type=column.type)
