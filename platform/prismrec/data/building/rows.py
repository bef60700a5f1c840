"""From rows as they stand to rows of the data format: read, join, give ids, check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prismrec.config import UserError, nearest
from prismrec.data.adapters.vocabulary import ValueCounts, Vocabulary
from prismrec.data.building.order import Keys
from prismrec.data.building.plan import ROW, BuildPlan
from prismrec.data.building.tables import Lookup
from prismrec.data.lookup import filtered_tables
from prismrec.data.rows import Ints
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import DataSource
from prismrec.data.values import NO_KEY, ints, one_array, zero_one
from prismrec.data.write import typed


@dataclass(frozen=True)
class Rows:
    """The rows that a data set is built of.

    Args:
        plan: what is built.
        source: files with the rows; a column `__row` numbers them where they are not in their order.
        lookups: joined tables that are held in memory.
    """

    plan: BuildPlan
    source: DataSource
    lookups: tuple[Lookup, ...]

    @property
    def time(self) -> str | None:
        """Column of the rows that holds the time."""
        return self.plan.read_from(self.plan.time) if self.plan.time else None

    def first_row(self, group: int) -> int:
        """Rows of the row groups before one."""
        return int(self.source.group_rows[:group].sum())

    def read(self, group: int, columns: list[str]) -> tuple[pa.Table, Keys]:
        """Some columns of a row group, those that key its joins among them, and its places.

        Raises:
            UserError: the row group cannot be decoded, or a time is null or no whole number.
        """
        joined = {name for each in self.lookups for name in each.columns.column_names}
        wanted = list(columns) if self.time is None else [*columns, self.time]
        wanted += [each.join.on for each in self.lookups]
        own = [name for name in dict.fromkeys(wanted) if name not in joined]
        is_numbered = ROW in self.source.schema.columns
        own += [ROW] if is_numbered else []
        (table,) = filtered_tables(self.source, (), own, "rows", [group])
        if is_numbered:
            numbers = ints(one_array(table.column(ROW)), NO_KEY)
        else:
            first = self.first_row(group)
            numbers = np.arange(first, first + table.num_rows)
        return table, Keys(self._times(table, group), numbers)

    def join(self, table: pa.Table) -> tuple[pa.Table, list[int]]:
        """The table with the columns of every lookup, and how many rows each has no match for."""
        misses = []
        for lookup in self.lookups:
            table, missing = lookup(table)
            misses.append(missing)
        return table, misses

    def _times(self, table: pa.Table, group: int) -> Ints:
        if self.time is None:
            return np.zeros(table.num_rows, np.int64)
        column, where = one_array(table.column(self.time)), self.source.where(group)
        if column.null_count:
            raise UserError(
                f"{where}: column '{self.time}' of kind 'time' is null in {column.null_count} rows, "
                "which have no place in the order; give them a time or leave them out"
            )
        return ints(_whole_times(column, self.time, where), NO_KEY)


def columns_read(plan: BuildPlan) -> list[str]:
    """Columns of the rows and of joined tables that a plan makes the result of, each once."""
    return list(dict.fromkeys(plan.read_from(name) for name in plan.columns))


def count_values(rows: Rows, group: int, until: int | None) -> dict[str, ValueCounts]:
    """How often each value stands in the training rows of a row group, by vocabulary.

    Args:
        rows: the rows.
        group: the row group.
        until: time of the first row that is not for training; None if all are.

    Raises:
        UserError: the row group cannot be decoded.
    """
    members: dict[str, list[str]] = {}
    for name, column in rows.plan.columns.items():
        if column.vocabulary:
            members.setdefault(column.vocabulary, []).append(rows.plan.read_from(name))
    table, keys = rows.read(group, [name for names in members.values() for name in names])
    if until is not None:
        table = table.filter(pa.array(keys.times < until))
    table, _ = rows.join(table)
    counts = {}
    for vocabulary, names in members.items():
        counts[vocabulary] = ValueCounts()
        for name in dict.fromkeys(names):
            counts[vocabulary].update(table.column(name))
    return counts


@dataclass(frozen=True)
class Encoding:
    """From joined rows to columns of the result.

    Args:
        plan: what is built.
        vocabularies: what gives ids to values, by name.
    """

    plan: BuildPlan
    vocabularies: Mapping[str, Vocabulary]

    def schema(self) -> DataSchema:
        """The schema of the result."""
        columns = {}
        for name, each in self.plan.columns.items():
            known = self.vocabularies[each.vocabulary].num_ids if each.vocabulary else each.num_ids
            columns[name] = Column(kind=each.kind, num_ids=known, description=each.description)
        return DataSchema(name=self.plan.name, columns=columns, source=self.plan.source)

    def __call__(self, table: pa.Table, where: str) -> pa.Table:
        """Rows of the result.

        Args:
            table: joined rows.
            where: what these are called in errors.

        Raises:
            UserError: a value does not fit the kind of its column.
        """
        columns = {}
        for name, each in self.plan.columns.items():
            column = one_array(table.column(self.plan.read_from(name)))
            if each.vocabulary:
                vocabulary = self.vocabularies[each.vocabulary]
                is_list = each.kind == "ids"
                column = (vocabulary.encode_bags if is_list else vocabulary.encode)(column)
            elif each.kind == "time":
                column = _whole_times(column, name, where)
            elif each.kind == "label":
                values, valid = zero_one(column, name, where)
                column = pa.array(values.astype(np.int8), mask=valid == 0)
            elif each.kind in ("number", "numbers"):
                wanted = pa.float32() if each.kind == "number" else pa.list_(pa.float32())
                column = column.cast(wanted, safe=False)
            columns[name] = column
        try:
            return typed(pa.table(columns), self.schema())
        except UserError as error:
            raise UserError(f"{where}: {error.message}") from None


def check_columns(plan: BuildPlan, types: Mapping[str, pa.DataType]) -> None:
    """Whether every column of the result can be made of what is there.

    Args:
        plan: what is built.
        types: of the columns of the rows and of the joined tables, by name.

    Raises:
        UserError: a column is missing, or its type does not fit its kind.
    """
    for name, each in plan.columns.items():
        source = plan.read_from(name)
        if source not in types:
            raise UserError(
                f"columns.{name}: neither the rows nor a joined table have a column '{source}'; "
                + nearest(source, types)
            )
        type_ = types[source]
        is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
        if each.kind != "other" and is_list != (each.kind in ("ids", "numbers")):
            raise UserError(
                f"columns.{name}: kind '{each.kind}' does not go with type {type_} of '{source}'; "
                "bags are of kind 'ids' or 'numbers', single values are not"
            )
        inner = type_.value_type if is_list else type_
        is_text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
        is_known = is_text or pa.types.is_integer(inner)
        if each.vocabulary and not is_known:
            raise UserError(
                f"columns.{name}: '{source}' has type {type_}; ids are given to text or whole numbers"
            )
        if is_text and not each.vocabulary and each.kind != "other":
            how = "set a vocabulary" if each.kind in ("id", "ids") else "correct its kind"
            raise UserError(f"columns.{name}: '{source}' is text, kind is '{each.kind}'; {how}")
        if each.kind in ("number", "numbers", "label") and not _is_number(inner):
            raise UserError(
                f"columns.{name}: '{source}' has type {type_}, which is no number as kind "
                f"'{each.kind}' needs it; correct its kind or the column"
            )
    _check_vocabularies(plan, types)


def _is_number(type_: pa.DataType) -> bool:
    is_any = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return pa.types.is_null(type_) or any(check(type_) for check in is_any)


def _check_vocabularies(plan: BuildPlan, types: Mapping[str, pa.DataType]) -> None:
    """Text and numbers cannot share ids."""
    kinds: dict[str, dict[bool, str]] = {}
    for name, each in plan.columns.items():
        if each.vocabulary:
            type_ = types[plan.read_from(name)]
            inner = type_.value_type if hasattr(type_, "value_type") else type_
            kinds.setdefault(each.vocabulary, {})[pa.types.is_integer(inner)] = name
    for vocabulary, found in kinds.items():
        if len(found) > 1:
            raise UserError(
                f"columns.{found[True]}: holds whole numbers, and '{found[False]}', which has the same "
                f"vocabulary '{vocabulary}', holds text; give them vocabularies of their own"
            )


def _whole_times(column: pa.Array, name: str, where: str) -> pa.Array:
    """Times as int64; those of a calendar in milliseconds since 1970."""
    try:
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return column.cast(pa.timestamp("ms")).cast(pa.int64())
        return column.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"{where}: column '{name}' of kind 'time' cannot become whole numbers "
            f"({str(error).splitlines()[0]}); correct the values or the kind"
        ) from None
