"""Which id each row of a table stands for, so that rows can be told apart outside of a run.

Notation: n rows or ids asked for; R rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from prismrec.data.encode.encoders import (
    DirectEncoder,
    Encoder,
    HashEncoder,
    QuotientRemainderEncoder,
    TableRows,
    VocabularyEncoder,
)
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.tables import NumberRows, NumberTable
from prismrec.data.encode.semantic import SemanticEncoder
from prismrec.data.encode.tables import IdTable
from prismrec.data.rows import Ints

NO_ROW = -1
"""Stands for the row of an id that has none."""

_CHUNK_ROWS = 1 << 20


class RowIds(Protocol):
    """The ids of a table's rows."""

    @property
    def num_rows(self) -> int:
        """R."""

    @property
    def unknown(self) -> Ints:
        """Rows of the ids that have no row of their own, the row of a missing id last."""

    def ids_of(self, start: int, stop: int) -> Ints:
        """(n,) ids of rows start..stop-1, `NULL_ID` where a row stands for none."""

    def rows_of(self, ids: Ints) -> Ints:
        """(n,) rows of ids, `NO_ROW` for an id that has no row of its own."""


@dataclass(frozen=True, slots=True)
class DirectRows:
    """An id is its own row.

    Args:
        table: how the rows are shared out.
    """

    table: TableRows

    @property
    def num_rows(self) -> int:
        """R."""
        return self.table.total

    @property
    def unknown(self) -> Ints:
        """The rows after the known ones."""
        return np.arange(self.table.known, self.table.total)

    def ids_of(self, start: int, stop: int) -> Ints:
        """Ids of rows."""
        rows = np.arange(start, stop)
        return np.where(rows < self.table.known, rows, NULL_ID)

    def rows_of(self, ids: Ints) -> Ints:
        """Rows of ids."""
        return np.where((ids >= 0) & (ids < self.table.known), ids, NO_ROW)


@dataclass(frozen=True)
class ListedRows:
    """Rows whose ids are written down.

    Args:
        ids: (R,) id of every row, `NULL_ID` where a row stands for none; each id once.
        unknown: rows of the ids that are not in it, the row of a missing id last.
    """

    ids: Ints
    unknown: Ints
    _sorted: Ints = field(init=False, repr=False, compare=False)
    _order: Ints = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = np.argsort(self.ids, kind="stable")
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_sorted", self.ids[order])

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.ids)

    def ids_of(self, start: int, stop: int) -> Ints:
        """Ids of rows."""
        return self.ids[start:stop]

    def rows_of(self, ids: Ints) -> Ints:
        """Rows of ids."""
        if not len(self._sorted):
            return np.full(len(ids), NO_ROW)
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        found = (self._sorted[places] == ids) & (ids != NULL_ID)
        return np.where(found, self._order[places], NO_ROW)


def fixed_row_ids(encoder: Encoder | NumberRows) -> RowIds | None:
    """The ids of the rows of a table whose ids have fixed rows; None where they share rows.

    Args:
        encoder: of the table; not of a managed one.
    """
    if isinstance(encoder, DirectEncoder):
        return DirectRows(encoder.rows)
    if isinstance(encoder, VocabularyEncoder):
        ids = np.full(encoder.rows.total, NULL_ID)
        ids[encoder.places] = encoder.ids
        return ListedRows(ids, np.arange(encoder.rows.known, encoder.rows.total))
    return None


class TableIds:
    """What the rows of the tables of a run stand for.

    Args:
        tables: the tables as their ids see them, by name.
        owners: which rows ids have been given in a managed table, as of now; None where nobody
            has a row yet.
    """

    def __init__(
        self,
        tables: Mapping[str, IdTable | NumberTable],
        owners: Callable[[str], ListedRows] | None = None,
    ) -> None:
        self._tables = tables
        self._owners = owners
        self._encoders: dict[str, Encoder | NumberRows] = {}
        self._row_ids: dict[str, RowIds | None] = {}

    def kind(self, table: str) -> str:
        """Kind of a table's ids, as `embedding.tables.NAME.ids` has it, or `number`."""
        return self._tables[table].kind

    def encoder(self, table: str) -> Encoder | NumberRows:
        """From ids to rows of a table; of a table of numbers, what its rows stand for.

        Raises:
            UserError: its vocabulary cannot be read.
        """
        if table not in self._encoders:
            self._encoders[table] = self._tables[table].encoder()
        return self._encoders[table]

    def row_ids(self, table: str) -> RowIds | None:
        """The ids of a table's rows; None where ids share rows or have not been given any.

        Raises:
            UserError: its vocabulary cannot be read.
        """
        if table not in self._row_ids:
            if self._owners is not None and self.kind(table) == "managed":
                self._row_ids[table] = self._owners(table)
            else:
                self._row_ids[table] = fixed_row_ids(self.encoder(table))
        return self._row_ids[table]


def counterparts(target: RowIds, source: RowIds, start: int, stop: int) -> Ints:
    """(n,) rows of another table that stand for the same ids as rows start..stop-1 of this one.

    Unknown rows match one by one where both tables have as many of them; otherwise only those of a
    missing id match. `NO_ROW` where there is no counterpart.

    >>> counterparts(DirectRows(TableRows(4)), DirectRows(TableRows(2)), 1, 5).tolist()
    [1, -1, -1, 2]
    """
    rows = source.rows_of(target.ids_of(start, stop))
    ours, theirs = target.unknown, source.unknown
    if len(ours) != len(theirs):
        ours, theirs = ours[-1:], theirs[-1:]
    here = (ours >= start) & (ours < stop)
    rows[ours[here] - start] = theirs[here]
    return rows


Alignment = Callable[[int, int], Ints]
"""For rows start..stop-1 of one table, their counterparts in another, see `counterparts`."""


def align(
    target: tuple[TableIds, str], source: tuple[TableIds, str]
) -> tuple[Alignment | None, str]:
    """How the rows of two tables that stand for the same ids are found.

    Args:
        target: a run's ids, and one of its tables.
        source: the same of another run.

    Returns:
        The counterparts of the target's rows, or None and why there are none.
    """
    (ours, name), (theirs, other) = target, source
    first, second = ours.row_ids(name), theirs.row_ids(other)
    if first is not None and second is not None:
        return partial(counterparts, first, second), ""
    if ours.kind(name) != theirs.kind(other):
        return None, f"ids are '{ours.kind(name)}' here and '{theirs.kind(other)}' there"
    if ours.kind(name) == "managed":
        return None, "of other numbers of rows or buckets than there"
    if not _fold_alike(ours.encoder(name), theirs.encoder(other)):
        return None, "ids share rows differently here and there"
    return same_rows, ""


def same_rows(start: int, stop: int) -> Ints:
    """Rows start..stop-1 themselves."""
    return np.arange(start, stop)


def _fold_alike(first: Encoder | NumberRows, second: Encoder | NumberRows) -> bool:
    """Whether two encoders send every id, unknown ones too, to the same rows."""
    if isinstance(first, NumberRows) and isinstance(second, NumberRows):
        return first == second
    if isinstance(first, HashEncoder) and isinstance(second, HashEncoder):
        return first.seeds == second.seeds and _share_alike(first.rows, second.rows)
    if isinstance(first, QuotientRemainderEncoder) and isinstance(second, QuotientRemainderEncoder):
        same = (first.num_ids, first.divisor) == (second.num_ids, second.divisor)
        return same and _share_alike(first.rows, second.rows)
    if isinstance(first, SemanticEncoder) and isinstance(second, SemanticEncoder):
        same = (first.meaning, first.segments) == (second.meaning, second.segments)
        return same and _share_alike(first.rows, second.rows)
    return False


def _share_alike(first: TableRows, second: TableRows) -> bool:
    if (first.known, first.unknown) != (second.known, second.unknown):
        return False
    return first.seed == second.seed or first.unknown <= 2  # one of them is that of missing ids


def id_range(rows: RowIds, start: int, stop: int) -> tuple[int, int]:
    """The least id of rows start..stop-1 and the one after the largest; (0, 0) where none has one."""
    low, high = 0, 0
    for first in range(start, stop, _CHUNK_ROWS):
        ids = rows.ids_of(first, min(first + _CHUNK_ROWS, stop))
        ids = ids[ids != NULL_ID]
        if len(ids):
            least, most = int(ids.min()), int(ids.max()) + 1
            low, high = (least, most) if low == high else (min(low, least), max(high, most))
    return low, high
