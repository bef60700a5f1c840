"""The same work on many items, as a Ray Data pipeline over the machines of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from prismrec.cluster.members import check_members
from prismrec.cluster.runtime import ray_runtime
from prismrec.config import UserError
from prismrec.data.building.build import Means, Stages
from prismrec.data.building.plan import ROW
from prismrec.data.building.rows import Rows
from prismrec.data.building.tables import OpenJoin
from prismrec.data.lookup import filtered_tables

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Found = TypeVar("Found")

_JOIN_BYTES = 128 * 2**20
"""Decoded size of the part of a shuffled join that one process holds."""


@contextmanager
def ray_means(address: str | None, tell: Stages, *, verbose: bool) -> Iterator[Means]:
    """What a build works with on Ray, which is embedded or runs at an address.

    Args:
        address: of a cluster, or None.
        tell: told how far it is.
        verbose: show what Ray says.

    Raises:
        UserError: the cluster cannot be reached.
    """
    with ray_runtime(address, num_workers=1, verbose=verbose):
        if address is not None:
            check_members()
        from ray.data import DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = verbose
        context.execution_options.preserve_order = True
        context.execution_options.verbose_progress = False
        if not verbose:
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say is raised
        yield Means(over_ray, shuffled_join, tell)


def over_ray(
    work: Callable[[Shared, Item], Found], shared: Shared, items: Sequence[Item]
) -> Iterator[Found]:
    """A `Runner` whose work is done by tasks of a Ray Data pipeline, one item each.

    `shared` is put into the object store once; processes of a machine read it from there.

    Raises:
        UserError: the mistake that an item's work met.
    """
    import ray
    import ray.data

    if not items:
        return
    reference = ray.put((shared, tuple(items)))

    def call(batch: dict[str, Any]) -> dict[str, Any]:
        given, every = ray.get(reference)
        found = np.empty(1, object)
        try:
            found[0] = work(given, every[int(batch["item"][0])])
        except UserError as error:
            found[0] = error  # raised, it would reach nobody: Ray Data hands on its traceback only
        return {"found": found}

    numbers = [{"item": number} for number in range(len(items))]
    data = ray.data.from_items(numbers, override_num_blocks=len(numbers))
    for row in data.map_batches(call, batch_size=1).iter_rows():
        if isinstance(row["found"], UserError):
            raise row["found"]
        yield row["found"]


def shuffled_join(rows: Rows, columns: list[str], join: OpenJoin, out: Path) -> None:
    """Write some columns of the rows and those of a joined table, numbered, by Ray Data's hash join.

    Rows come in any order; a row whose key stands twice in the table comes twice.

    Raises:
        UserError: a row group cannot be decoded.
    """
    import ray.data

    key, theirs, mistake = join.join.on, join.join.key_column, out.with_suffix(".txt")
    parts = max(2, -(-join.size // _JOIN_BYTES))
    left_types = {field.name: field.type for field in rows.source.arrow(0)}
    right_types = {field.name: field.type for field in join.source.arrow(0)}
    fields = [pa.field(name, left_types[name]) for name in columns]
    names = dict(zip(join.join.columns, join.join.taken, strict=True))
    fields += [pa.field(name, right_types[column]) for column, name in names.items()]
    target = pa.schema([*fields, pa.field(ROW, pa.int64())])

    def left(batch: dict[str, Any]) -> pa.Table:
        with _mistakes_put(mistake):
            table, keys = rows.read(int(batch["id"][0]), columns)
        numbered = table.select(columns).append_column(ROW, pa.array(keys.rows))
        return _with_plain_key(numbered, key)

    def right(batch: dict[str, Any]) -> pa.Table:
        group = int(batch["id"][0])
        with _mistakes_put(mistake):
            (table,) = filtered_tables(join.source, (), join.columns, join.where, [group])
        taken = pa.table({names[name]: table.column(name) for name in join.join.columns})
        return _with_plain_key(taken.append_column(key, table.column(theirs)), key)

    def typed(table: pa.Table) -> pa.Table:
        return table.select(target.names).cast(target)

    ours, other = (
        ray.data.range(len(source.group_rows), override_num_blocks=len(source.group_rows))
        for source in (rows.source, join.source)
    )
    with _mistakes_told(mistake):
        joined = ours.map_batches(left, batch_size=1).join(
            other.map_batches(right, batch_size=1), "left_outer", parts, on=(key,)
        )
        joined.map_batches(typed, batch_format="pyarrow").write_parquet(str(out))


def _with_plain_key(table: pa.Table, key: str) -> pa.Table:
    """The table with a key of one type on both sides: int64 or text."""
    index = table.schema.get_field_index(key)
    wanted = pa.int64() if pa.types.is_integer(table.schema.field(index).type) else pa.string()
    return table.set_column(index, key, table.column(key).cast(wanted))


@contextmanager
def _mistakes_put(path: Path) -> Iterator[None]:
    """Write a `UserError` of a task into a file; Ray Data hands on its traceback only."""
    try:
        yield
    except UserError as error:
        path.write_text(error.message)
        raise


@contextmanager
def _mistakes_told(path: Path) -> Iterator[None]:
    """Raise the `UserError` of a task as itself."""
    try:
        yield
    except Exception:
        if path.exists():
            raise UserError(path.read_text()) from None
        raise
