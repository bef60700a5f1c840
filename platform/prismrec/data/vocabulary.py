"""Counting the ids of a data set in one pass, and writing vocabularies from the counts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe, UserError, nearest
from prismrec.data.encode.ids import NULL_ID, Ints
from prismrec.data.encode.vocabulary import FIELDS, vocabularies
from prismrec.data.lookup import filtered_tables
from prismrec.data.source import DataSource
from prismrec.data.values import ints, one_array
from prismrec.data.write import Progress

_LEAST_WAITING = 1 << 20
_WRITTEN_ROWS = 1 << 20


class IdCounter:
    """Distinct ids and how often each was added.

    Memory is 16 bytes for a distinct id, and about as much again while ids are merged.

    Attributes:
        total: ids added.
    """

    def __init__(self) -> None:
        self.total = 0
        self._ids: Ints = np.zeros(0, np.int64)
        self._counts: Ints = np.zeros(0, np.int64)
        self._waiting: list[tuple[Ints, Ints]] = []
        self._num_waiting = 0

    def add(self, ids: Ints) -> None:
        """Count ids."""
        self.total += len(ids)
        distinct, counts = np.unique(ids, return_counts=True)
        self._waiting.append((distinct, counts))
        self._num_waiting += len(distinct)
        # A quarter of what is there: each id is moved a few times only, however many there are.
        if self._num_waiting > max(_LEAST_WAITING, len(self._ids) // 4):
            self._merge()

    def join(self, other: IdCounter) -> None:
        """Count what another one has counted."""
        ids, counts = other.counted()
        self.total += other.total
        self._waiting.append((ids, counts))
        self._num_waiting += len(ids)
        self._merge()

    def counted(self) -> tuple[Ints, Ints]:
        """The distinct ids in rising order, and how often each was added."""
        self._merge()
        return self._ids, self._counts

    def _merge(self) -> None:
        if not self._num_waiting:
            return
        ids, counts = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting, self._num_waiting = [], 0
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], counts[order]
        firsts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        ids, counts = ids[firsts], np.add.reduceat(counts, firsts)
        at = np.searchsorted(self._ids, ids)
        is_known = np.zeros(len(ids), bool)
        inside = at < len(self._ids)
        is_known[inside] = self._ids[at[inside]] == ids[inside]
        self._counts[at[is_known]] += counts[is_known]
        is_new = ~is_known
        self._ids = np.insert(self._ids, at[is_new], ids[is_new])
        self._counts = np.insert(self._counts, at[is_new], counts[is_new])


def count_ids(
    source: DataSource,
    columns: Mapping[str, Sequence[str]],
    conditions: Sequence[str],
    progress: Progress | None = None,
    groups: Sequence[int] | None = None,
) -> dict[str, IdCounter]:
    """How often each id stands in some columns, missing ids left out, in one pass over the rows.

    Args:
        source: the data set.
        columns: groups of columns of ids or bags of ids, whose ids are counted together, by a
            name for each group.
        conditions: as in `data.splits`; every row if there are none.
        progress: called after every row group with how many are read and how many there are.
        groups: row groups to read, in rising order; all if not given.

    Raises:
        UserError: a column is missing or holds no ids, a condition cannot be read, or a row group
            cannot be decoded.
    """
    names = list(dict.fromkeys(name for group in columns.values() for name in group))
    for name in names:
        source.schema.column(name, ("id", "ids"), "vocabulary")
    counters = {group: IdCounter() for group in columns}
    total = len(source.group_rows) if groups is None else len(groups)
    tables = filtered_tables(source, conditions, names, "conditions", groups)
    for done, table in enumerate(tables, 1):
        for group, members in columns.items():
            for name in members:
                counters[group].add(_ids(one_array(table.column(name))))
        if progress is not None:
            progress(done, total)
    return counters


def _ids(array: pa.Array) -> Ints:
    is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    ids = ints(array.flatten() if is_list else array, NULL_ID)
    return ids[ids != NULL_ID]


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """A vocabulary to write.

    Args:
        columns: whose ids are in it.
        out: the file.
    """

    columns: tuple[str, ...]
    out: Path


@dataclass(frozen=True, slots=True)
class Written:
    """A vocabulary that was written.

    Args:
        out: the file.
        ids: ids in it.
        values: how often these stand in the rows that were counted.
        all_ids: distinct ids in these rows.
        all_values: ids in these rows.
    """

    out: Path
    ids: int
    values: int
    all_ids: int
    all_values: int


def files_of(recipe: Recipe, table: str | None = None) -> list[VocabularyFile]:
    """The vocabularies that a recipe names, with the columns of their tables' features.

    Args:
        recipe: the recipe.
        table: only that of this table.

    Raises:
        UserError: there is none, or one is not on a local disk.
    """
    found = vocabularies(recipe)
    if table is not None and table not in found:
        raise UserError(
            f"--table: the recipe has no table '{table}' with ids.kind = 'vocabulary'; "
            + nearest(table, found)
        )
    if not found:
        raise UserError(
            "embedding.tables: no table of the recipe has ids.kind = 'vocabulary'; nothing to write"
        )
    files = []
    for name, options in found.items():
        if table not in (None, name):
            continue
        if "://" in options.path:
            raise UserError(
                f"embedding.tables.{name}.ids.path: {options.path} is a URL; write the file to a "
                "local path by DIR, --column and --out and copy it there"
            )
        columns = [each.column for each in recipe.features.id_lists if each.table == name]
        files.append(VocabularyFile(tuple(dict.fromkeys(columns)), Path(options.path)))
    return files


def write_vocabularies(
    source: DataSource,
    files: Sequence[VocabularyFile],
    conditions: Sequence[str],
    min_count: int = 1,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Written]:
    """Write vocabularies in one pass over the rows.

    Ids are sorted by falling count, those of one count by value: the same rows give the same file,
    however they are cut into files and row groups.

    Args:
        source: the data set.
        files: what to write.
        conditions: as in `data.splits`; only rows that meet them are counted.
        min_count: ids seen less often are left out.
        overwrite: replace files that are there.
        progress: called after every row group with how many are read and how many there are.

    Raises:
        UserError: see `count_ids`; or a file is there, or no id is frequent enough.
    """
    for each in files:
        if each.out.exists() and not overwrite:
            raise UserError(f"{each.out}: already there; --overwrite replaces it")
    wanted = {str(each.out): each.columns for each in files}
    counters = count_ids(source, wanted, conditions, progress)
    return [write_counted(each.out, counters[str(each.out)], min_count) for each in files]


def _by_falling_count(counts: Ints) -> Ints:
    """Places of the counts from the largest to the smallest, equal ones in the order they are in."""
    most = counts.max()
    type_ = np.uint32 if most < 2**32 else np.uint64  # half the memory, where it will do
    behind = np.subtract(most, counts, dtype=type_, casting="unsafe")
    return np.argsort(behind, kind="stable")


def write_counted(out: Path, counter: IdCounter, min_count: int = 1) -> Written:
    """Write the vocabulary of ids that were counted, or another in its place; whole or not at all.

    Raises:
        UserError: no id is frequent enough.
    """
    ids, counts = counter.counted()
    size = int((counts >= min_count).sum())
    if not size:
        raise UserError(
            f"{out}: none of {len(ids)} distinct ids was seen {min_count} times or more; lower "
            "--min-count or count other rows"
        )
    kept = _by_falling_count(counts)[:size]
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(draft, FIELDS, compression="zstd") as writer:
            for start in range(0, len(kept), _WRITTEN_ROWS):
                here = kept[start : start + _WRITTEN_ROWS]
                writer.write_table(pa.table([ids[here], counts[here]], schema=FIELDS))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return Written(out, size, int(counts[counts >= min_count].sum()), len(ids), counter.total)
