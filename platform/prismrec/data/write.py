"""Writing a data set: Parquet files and `schema.json`, in place only when whole.

Names that start with an underscore lie beside the rows and are no part of them
(`_vocabulary`, `_truth`); every Parquet reader skips them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError
from prismrec.data.schema import FILE_NAME, DataSchema

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is, in any unit."""

GROUP_BYTES = 64 * 2**20
"""Decoded size of a row group of a large data set."""
MIN_GROUP_ROWS = 1024
GROUPS_OF_SMALL_DATA = 16
"""A data set whose size is known gets at least this many row groups, so that lanes can be cut and shuffled."""
GROUPS_PER_FILE = 16

_TYPES = {
    "id": pa.int64(),
    "ids": pa.list_(pa.int64()),
    "number": pa.float32(),
    "numbers": pa.list_(pa.float32()),
    "label": pa.int8(),
    "time": pa.int64(),
}


def write_table(
    out: Path,
    tables: pa.Table | Iterable[pa.Table],
    schema: DataSchema,
    rows_per_group: int | None = None,
    rows_per_file: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a data set that appears at `out` whole or not at all.

    Args:
        out: directory to make.
        tables: the rows. One table is sorted by the schema's time column; of several, the
            order is kept, so rows with a time must come in its order.
        schema: written last, as `schema.json`; its columns name and order those of the files.
        rows_per_group: rows of a row group; by the size of a row if not given.
        rows_per_file: rows of a file; 16 row groups if not given.
        overwrite: replace a data set that lies at `out`.

    Raises:
        UserError: something lies at `out` already, or a column does not fit its kind.
    """
    with staged(out, overwrite) as directory:
        write_parts(directory, tables, schema, rows_per_group, rows_per_file)


@contextmanager
def staged(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty directory beside `out` that takes its place when the block ends well.

    An error or an interrupt removes it and leaves `out` as it was.

    Raises:
        UserError: something lies at `out` already and may not be replaced.
    """
    out = out.resolve()
    check_free(out, overwrite)
    stage = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; choose another directory"
        ) from None
    try:
        yield stage
        _put_in_place(stage, out)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def write_parts(
    directory: Path,
    tables: pa.Table | Iterable[pa.Table],
    schema: DataSchema,
    rows_per_group: int | None = None,
    rows_per_file: int | None = None,
) -> None:
    """Write the files and `schema.json` into `directory`; the arguments are those of `write_table`.

    Raises:
        UserError: a column does not fit its kind.
    """
    parts: ParquetParts | None = None
    try:
        for table in [_in_time(tables, schema)] if isinstance(tables, pa.Table) else tables:
            table = typed(table, schema)
            if parts is None:
                total = table.num_rows if isinstance(tables, pa.Table) else None
                group = rows_per_group or group_rows(table, total)
                parts = ParquetParts(
                    directory, table.schema, group, rows_per_file or group * GROUPS_PER_FILE
                )
            parts.add(table)
    finally:
        if parts is not None:
            parts.close()
    if parts is None or parts.num_rows == 0:
        raise UserError(f"'{schema.name}': there is not a single row to write; look at the source")
    schema.write(directory)


def group_rows(sample: pa.Table, num_rows: int | None, group_bytes: int = GROUP_BYTES) -> int:
    """Rows of a row group: 64 MiB decoded, but at least 16 groups where `num_rows` is known.

    Args:
        sample: rows like those to be written.
        num_rows: all rows to be written, None where nobody knows yet.
        group_bytes: decoded size of a row group where it is not 64 MiB.
    """
    by_size = group_bytes * max(sample.num_rows, 1) // max(sample.nbytes, 1)
    if num_rows is not None:
        by_size = min(by_size, -(-num_rows // GROUPS_OF_SMALL_DATA))
    return max(by_size, MIN_GROUP_ROWS)


class ParquetParts:
    """Cuts a stream of tables into files `part-00000.parquet`, ... of whole row groups.

    Args:
        directory: where; exists.
        schema: columns of every table.
        rows_per_group: rows of a row group, of all but the last.
        rows_per_file: rows of a file, rounded down to whole row groups.
        options: of `pyarrow.parquet.ParquetWriter`.
    """

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        rows_per_group: int,
        rows_per_file: int,
        options: Mapping[str, Any] = MappingProxyType({"compression": "zstd"}),
    ) -> None:
        self._directory, self._schema, self._options = directory, schema, dict(options)
        self._rows_per_group = rows_per_group
        self._groups_per_file = max(1, rows_per_file // rows_per_group)
        self.num_rows = 0
        """Rows in the files so far."""
        self._num_groups = 0
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Take rows; they are written once they fill a row group."""
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        if self._rows_waiting >= self._rows_per_group:
            rows = pa.concat_tables(self._waiting)
            whole = rows.num_rows - rows.num_rows % self._rows_per_group
            for start in range(0, whole, self._rows_per_group):
                self._write(rows.slice(start, self._rows_per_group))
            self._waiting = [rows.slice(whole)]
            self._rows_waiting = rows.num_rows - whole

    def close(self) -> None:
        """Write what waits and close the last file."""
        if self._rows_waiting:
            self._write(pa.concat_tables(self._waiting))
        self._close_file()

    def _write(self, group: pa.Table) -> None:
        if self._num_groups % self._groups_per_file == 0:
            self._close_file()
            number = self._num_groups // self._groups_per_file
            path = self._directory / f"part-{number:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, **self._options)
        assert self._writer is not None
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._num_groups += 1
        self.num_rows += group.num_rows

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _in_time(table: pa.Table, schema: DataSchema) -> pa.Table:
    for name, column in schema.columns.items():
        if column.kind == "time" and name in table.column_names:
            values = table[name].to_numpy()
            return table if (values[1:] >= values[:-1]).all() else table.sort_by(name)
    return table


def typed(table: pa.Table, schema: DataSchema) -> pa.Table:
    """The columns in the schema's order and in the types the data format writes.

    Raises:
        UserError: a column is missing or does not fit its kind.
    """
    columns = {}
    for name, column in schema.columns.items():
        if name not in table.column_names:
            raise UserError(f"'{schema.name}': column '{name}' is in the schema, not in the rows")
        values = table[name]
        wanted = _TYPES.get(column.kind, values.type)
        try:
            columns[name] = values if values.type == wanted else values.cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"'{schema.name}': column '{name}' is of kind '{column.kind}' and cannot become "
                f"{wanted}: {str(error).splitlines()[0]}; correct its kind in the schema"
            ) from None
    return pa.table(columns)


def check_free(out: Path, overwrite: bool = False) -> None:
    """Whether a data set may be written to `out`.

    Raises:
        UserError: something lies there already and may not be replaced.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file, a directory is written here; choose another name")
    if not any(out.iterdir()):
        return
    if not (out / FILE_NAME).is_file():
        raise UserError(
            f"{out}: is not empty and holds no data set; choose another directory or empty it yourself"
        )
    if not overwrite:
        raise UserError(
            f"{out}: a data set lies here already; remove it, have it overwritten, "
            "or choose another directory"
        )


def _put_in_place(stage: Path, out: Path) -> None:
    if not out.exists():
        stage.rename(out)
        return
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        stage.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
