"""Tables that are joined to the rows of a data set that is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError, nearest
from prismrec.data.adapters.vocabulary import Vocabulary
from prismrec.data.building.plan import BuildPlan, Join
from prismrec.data.lookup import filtered_tables
from prismrec.data.rows import Ints
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import DataSource, open_data


def open_columns(path: str, columns: Sequence[str], name: str) -> DataSource:
    """Parquet files of which some columns are wanted, whatever these mean.

    Args:
        path: their directory, or its URL.
        columns: names of the columns.
        name: what the files are called in errors.

    Raises:
        UserError: see `open_data`.
    """
    kinds = {each: Column(kind="other") for each in columns}
    return open_data(path, DataSchema(name=name, columns=kinds))


@dataclass(frozen=True, slots=True)
class Lookup:
    """A joined table in memory.

    Args:
        join: which.
        keys: the keys, rising, each once.
        columns: what is taken, under the names that it has beside the rows.
    """

    join: Join
    keys: Vocabulary
    columns: pa.Table

    def __call__(self, table: pa.Table) -> tuple[pa.Table, int]:
        """The table with the joined columns, and how many of its rows have no match."""
        keys = table.column(self.join.on)
        if not pa.types.is_integer(keys.type):
            keys = keys.cast(self.keys.values.type)
        places = self.keys.encode(keys)
        for name in self.columns.column_names:
            table = table.append_column(name, self.columns.column(name).take(places))
        return table, places.null_count


@dataclass(frozen=True, slots=True)
class OpenJoin:
    """A joined table on disk.

    Args:
        join: which.
        where: its place in the plan, for errors.
        source: its files.
        size: decoded bytes of the columns that are taken, by the footers.
    """

    join: Join
    where: str
    source: DataSource
    size: int

    @property
    def columns(self) -> list[str]:
        """The key, and what is taken."""
        return list(dict.fromkeys([self.join.key_column, *self.join.columns]))

    def load(self) -> Lookup:
        """The whole table.

        Raises:
            UserError: a key stands twice, or a row group cannot be decoded.
        """
        read = list(filtered_tables(self.source, (), self.columns, self.where))
        table = pa.concat_tables(read).combine_chunks()
        key = self.join.key_column
        table = table.filter(table.column(key).is_valid()).sort_by(key).combine_chunks()
        keys = table.column(key)
        keys = keys.chunk(0) if keys.num_chunks else pa.array([], keys.type)
        twice = _first_repeated(keys)
        if twice is not None:
            raise repeated(self, keys[twice].as_py())
        taken = {self.join.prefix + name: table.column(name) for name in self.join.columns}
        return Lookup(self.join, Vocabulary(keys), pa.table(taken))


def repeated(join: OpenJoin, key: object) -> UserError:
    """The error for a key that stands in more than one row of a joined table."""
    return UserError(
        f"{join.where}: {join.join.path} has more than one row for {join.join.key_column} = {key!r}; "
        "keep one of them, so that no row is doubled"
    )


def open_joins(plan: BuildPlan, rows: DataSource) -> list[OpenJoin]:
    """The joined tables of a plan, looked at but not read.

    Raises:
        UserError: one cannot be read, a column is missing or comes too late, or the types of keys
            differ.
    """
    types = {field.name: field.type for field in rows.arrow(0)}
    found = []
    for index, join in enumerate(plan.joins):
        where = f"joins[{index}]"
        if join.on not in types:
            raise UserError(f"{where}.on: {_no_key(plan, join, types)}")
        columns = list(dict.fromkeys([join.key_column, *join.columns]))
        source = open_columns(join.path, columns, where)
        arrow = source.arrow(0)
        mine, theirs = types[join.on], arrow.field(join.key_column).type
        if _family(mine) is None or _family(mine) != _family(theirs):
            raise UserError(
                f"{where}: '{join.on}' of the rows has type {mine} and '{join.key_column}' of "
                f"{join.path} has {theirs}; keys are whole numbers or text on both sides"
            )
        for name, column in zip(join.taken, join.columns, strict=True):
            if name in types:
                raise UserError(f"{where}: the rows have a column '{name}' already; set a prefix")
            types[name] = arrow.field(column).type
        found.append(OpenJoin(join, where, source, _decoded_size(source, columns)))
    return found


def _no_key(plan: BuildPlan, join: Join, types: Mapping[str, pa.DataType]) -> str:
    """Why a join finds no column with its keys."""
    if any(join.on in each.taken for each in plan.joins):
        return (
            f"'{join.on}' is no column of the rows or of a table joined before; put the table that "
            "has it first"
        )
    return f"the rows have no column '{join.on}'; {nearest(join.on, types)}"


def _family(type_: pa.DataType) -> str | None:
    if pa.types.is_integer(type_):
        return "whole number"
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    return "text" if is_text else None


def _first_repeated(keys: pa.Array) -> int | None:
    """Where a rising array has a value for the second time, None if nowhere."""
    if len(keys) < 2:
        return None
    same: Ints = np.flatnonzero(
        pa.compute.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    )
    return int(same[0]) + 1 if len(same) else None


def _decoded_size(source: DataSource, columns: Sequence[str]) -> int:
    """Bytes of some columns without compression, as the footers have it.

    Encoded by dictionary a column takes less there than in memory, but of keys that differ there is
    little to encode.
    """
    total = 0
    for file in range(len(source.files)):
        with pq.ParquetFile(source.file_path(file), filesystem=source.filesystem) as opened:
            facts = opened.metadata
            for group in range(facts.num_row_groups):
                for index in range(facts.num_columns):
                    column = facts.row_group(group).column(index)
                    if column.path_in_schema.split(".")[0] in columns:
                        total += column.total_uncompressed_size
    return total
