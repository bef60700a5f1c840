"""Rows out of their source into the files of the result, a bucket at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.data.building.order import Bucket, Cuts, Keys
from prismrec.data.building.plan import ROW
from prismrec.data.building.rows import Encoding, Rows, columns_read
from prismrec.data.values import ints, one_array

_TIME = "__time"
_MOST_BYTES = 128 * 2**20
"""Largest row group, decoded, unless the plan asks for larger ones."""


@dataclass(frozen=True, slots=True)
class Scattered:
    """A row group of the source, dealt out to buckets in a file of Arrow batches.

    Args:
        path: the file.
        buckets: bucket of each batch.
    """

    path: Path
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Writing:
    """All that a process needs to write files of the result.

    Args:
        rows: the rows.
        cuts: where their order is cut.
        encoding: what they become.
        directory: where files are written.
        scratch: where rows lie in between.
    """

    rows: Rows
    cuts: Cuts
    encoding: Encoding
    directory: Path
    scratch: Path


@dataclass(frozen=True, slots=True)
class Gather:
    """A file to write.

    Args:
        bucket: its number.
        groups: row groups of the source that have rows of it.
        scattered: files in their place, with the number of the batch in each.
    """

    bucket: int
    groups: tuple[int, ...]
    scattered: tuple[tuple[Path, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FileWritten:
    """A file of the result.

    Args:
        bucket: what it holds.
        rows: its rows.
        groups: its row groups.
        misses: for each joined table in memory, rows without a match.
    """

    bucket: Bucket
    rows: int
    groups: int
    misses: tuple[int, ...]


def scatter(writing: Writing, group: int) -> Scattered:
    """Deal the rows of a row group out to their buckets.

    Raises:
        UserError: the row group cannot be decoded.
    """
    table, keys = writing.rows.read(group, columns_read(writing.rows.plan))
    table = _with_keys(table, keys)
    buckets = writing.cuts(keys)
    order = np.argsort(buckets, kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    found, firsts = np.unique(buckets[order], return_index=True)
    path = writing.scratch / f"{group:07d}.arrow"
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(path, table.schema, options=options) as file:
        for first, end in zip(firsts, [*firsts[1:], len(order)], strict=True):
            (batch,) = table.slice(first, end - first).to_batches()
            file.write_batch(batch)
    return Scattered(path, tuple(found.tolist()))


def gather(writing: Writing, wanted: Gather) -> FileWritten:
    """Write the file of one bucket, its rows in order.

    Raises:
        UserError: a row group cannot be decoded, or a value does not fit the kind of its column.
    """
    parts = [_scattered(*each) for each in wanted.scattered]
    parts += [_inside(writing, group, wanted.bucket) for group in wanted.groups]
    parts = [each for each in parts if each.num_rows]
    bucket = writing.cuts.buckets[wanted.bucket]
    if not parts:
        return FileWritten(bucket, 0, 0, (0,) * len(writing.rows.lookups))
    table = _in_order(pa.concat_tables(parts)).drop_columns([_TIME, ROW])
    del parts
    table, misses = writing.rows.join(table)
    where = writing.rows.plan.rows
    table = writing.encoding(table, where)
    path = writing.directory / bucket.file
    path.parent.mkdir(exist_ok=True)
    groups = group_count(table.nbytes, writing.rows.plan.row_group_mib * 2**20)
    size = -(-table.num_rows // groups)
    pq.write_table(table, path, row_group_size=size, compression="zstd")
    return FileWritten(bucket, table.num_rows, -(-table.num_rows // size), tuple(misses))


def group_count(num_bytes: int, wanted: int) -> int:
    """Row groups of a file of so many bytes decoded: one, unless it came out too large for that.

    >>> group_count(100 * 2**20, 96 * 2**20), group_count(200 * 2**20, 96 * 2**20)
    (1, 3)
    """
    return 1 if num_bytes <= max(_MOST_BYTES, wanted) else -(-num_bytes // wanted)


def plan_files(
    cuts: Cuts, ends: Sequence[Keys], scattered: Sequence[Scattered] | None
) -> list[Gather]:
    """The files to write, each with where its rows are.

    Args:
        cuts: where the order is cut.
        ends: for each row group of the source the places of its first and last row, or none.
        scattered: rows dealt out to buckets; None if they are read from the source.
    """
    count = len(cuts.buckets)
    if scattered is not None:
        batches: list[list[tuple[Path, int]]] = [[] for _ in range(count)]
        for file in scattered:
            for index, bucket in enumerate(file.buckets):
                batches[bucket].append((file.path, index))
        return [Gather(bucket, (), tuple(each)) for bucket, each in enumerate(batches)]
    groups: list[list[int]] = [[] for _ in range(count)]
    for group, each in enumerate(ends):
        if len(each):
            first, last = cuts(each).tolist()
            for bucket in range(first, last + 1):
                groups[bucket].append(group)
    return [Gather(bucket, tuple(each)) for bucket, each in enumerate(groups)]


def _with_keys(table: pa.Table, keys: Keys) -> pa.Table:
    if ROW in table.column_names:
        table = table.drop_columns([ROW])
    return table.append_column(_TIME, pa.array(keys.times)).append_column(ROW, pa.array(keys.rows))


def _scattered(path: Path, batch: int) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(batch)])


def _inside(writing: Writing, group: int, bucket: int) -> pa.Table:
    """The rows of a row group that belong to a bucket."""
    table, keys = writing.rows.read(group, columns_read(writing.rows.plan))
    table = _with_keys(table, keys)
    inside = writing.cuts(keys) == bucket
    return table if inside.all() else table.filter(pa.array(inside))


def _in_order(table: pa.Table) -> pa.Table:
    times = ints(one_array(table.column(_TIME)), 0)
    rows = ints(one_array(table.column(ROW)), 0)
    is_behind = (times[1:] > times[:-1]) | ((times[1:] == times[:-1]) & (rows[1:] > rows[:-1]))
    return table if is_behind.all() else table.take(pa.array(np.lexsort((rows, times))))
