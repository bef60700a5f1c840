"""One row group at a time, from Parquet to columns of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.data.behaviours import read_behaviours
from prismrec.data.columns import IdColumn, LabelColumn, ReadColumns
from prismrec.data.encode.encoders import outside
from prismrec.data.encode.ids import NULL_ID, name_seed, sample_rows
from prismrec.data.filters import RowFilter
from prismrec.data.propensity import weights_of
from prismrec.data.rows import Bag, Floats, Ints, Rows
from prismrec.data.skipped import Skipped, attempt
from prismrec.data.source import DataSource
from prismrec.data.values import NO_KEY, floats, ints, label_and_valid, one_array

_ROW = "__row"
_ONE_BATCH = 2**31 - 1
"""More rows than a row group has: its columns come in one chunk, which numpy can view."""
_DECAY_MS = 20_000


@cache
def _decode_pool() -> pa.MemoryPool:
    """Memory of decoded columns, kept for the next row group instead of given back at once.

    Arrow's default pool returns it within milliseconds, and clearing new pages then costs as much as
    decoding does.
    """
    if "jemalloc" not in pa.supported_memory_backends():
        return pa.default_memory_pool()
    pa.jemalloc_set_decay_ms(_DECAY_MS)
    return pa.jemalloc_memory_pool()


@dataclass(frozen=True)
class Decoder:
    """Decodes the filtered rows of row groups.

    Args:
        source: the data set.
        columns: what is decoded.
        rows: which rows are kept.
        counts: how many of every row group these are.
        seed: of the sampling of negatives.
        ordered_by: time column by which every row group must be sorted, None where none must.
        skipped: takes row groups that cannot be decoded; None where these are errors.
    """

    source: DataSource
    columns: ReadColumns
    rows: RowFilter
    counts: Ints
    seed: int
    ordered_by: str | None
    skipped: Skipped | None = None

    def decode(self, group: int) -> Rows:
        """The filtered rows of a row group; missing values without weight if it is passed over.

        Raises:
            UserError: it cannot be decoded, a label is not 0 or 1, a number is infinite, the
                weights of a bag do not match its ids, an id is no row, a domain is none or a label
                lacks the one before it where that is asked for, or rows are not in the order of
                time that is asked for.
        """
        sampled = any(label.negative_rate < 1 for label in self.columns.labels)
        found = self._table(group, self.columns.names, sampled)
        table = self._blank(group) if found is None else found
        if self.ordered_by is not None and found is not None:
            _check_sorted(table.column(self.ordered_by), self.ordered_by, self.source.where(group))
        arrays = {name: one_array(table.column(name)) for name in table.column_names}
        ids = [self._single(each, arrays, group) for each in self.columns.codes]
        keys = [ints(arrays[name], NO_KEY) for name in self.columns.keys]
        if self.columns.domains is not None:
            known = self.columns.domains.known
            keys[0] = 0 * keys[0] if found is None else known(keys[0], partial(self._where, group))
        dense = [self._number(name, arrays, group) for name in self.columns.dense]
        numbers = arrays[_ROW].to_numpy() if sampled and found is not None else None
        labels = [self._label(each, arrays, (group, numbers)) for each in self.columns.labels]
        if self.columns.is_chain:
            self._check_chain(labels, group)
        weights = [
            weights_of(each, arrays[each.column], None if each.by is None else arrays[each.by])
            for each in self.columns.weighted.values()
        ]
        if self.columns.is_weighed:
            weights.append(np.full(table.num_rows, found is not None, np.float32))
        return Rows(
            table.num_rows,
            (*ids, *keys),
            (*dense, *(label for label, _ in labels), *(valid for _, valid in labels), *weights),
            tuple(self._bags(arrays, group)),
        )

    def row_numbers(self, group: int) -> Ints:
        """Where the filtered rows of a row group lie in the file's row group."""
        if self.counts[group] == self.source.group_rows[group]:
            return np.arange(self.counts[group])
        table = self._table(group, frozenset(), True)
        if table is None:
            return np.arange(self.counts[group])
        return np.asarray(table.column(_ROW).to_numpy(), np.int64)

    def _blank(self, group: int) -> pa.Table:
        """As many rows of missing values as the split has in a row group."""
        arrow, count = self.source.arrow(int(self.source.group_file[group])), self.counts[group]
        names = sorted(self.columns.names)
        return pa.table({name: pa.nulls(int(count), arrow.field(name).type) for name in names})

    def _table(self, group: int, names: frozenset[str], numbered: bool) -> pa.Table | None:
        """Columns of the filtered rows; None where the row group is passed over."""
        source, where = self.source, self.source.where(group)
        file = int(source.group_file[group])
        is_part = self.counts[group] < source.group_rows[group]
        wanted = names | self.rows.columns if is_part else names
        constants = source.files[file].constants
        columns = sorted(wanted - constants.keys())
        table = attempt(self.skipped, source, group, partial(self._read, group, columns))
        if table is None:
            return None
        for name in sorted(wanted & constants.keys()):
            value = pa.scalar(constants[name], source.partition_types[name])
            table = table.append_column(name, pa.repeat(value, int(source.group_rows[group])))
        if numbered:
            table = table.append_column(_ROW, pa.array(np.arange(source.group_rows[group])))
        if is_part:
            table = table.filter(self.rows.expression)
        if table.num_rows != self.counts[group]:
            raise UserError(
                f"{where}: {table.num_rows} rows pass the filter and {self.counts[group]} did when "
                "they were counted; the file was changed, start the run again"
            )
        return table

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        """Columns of a row group as they stand in the file."""
        source = self.source
        fragment = ds.ParquetFileFormat().make_fragment(
            source.file_path(int(source.group_file[group])),
            source.filesystem,
            row_groups=[int(source.group_index[group])],
        )
        return fragment.to_table(columns=columns, batch_size=_ONE_BATCH, memory_pool=_decode_pool())

    def _number(self, name: str, arrays: dict[str, pa.Array], group: int) -> Floats:
        scaler = self.columns.scalers.get(name)
        values = floats(arrays[name]) if scaler is None else scaler(arrays)
        return self._finite(values, name, lambda at: self._where(group, at))

    def _finite(self, values: Floats, column: str, where: Callable[[int], str]) -> Floats:
        """The same without infinite numbers, which end the run or read as missing."""
        if np.isfinite(values).all() or not (infinite := np.isinf(values)).any():
            return values
        if not self.columns.infinite_is_missing:
            row = int(np.flatnonzero(infinite)[0])
            raise UserError(
                f"{where(row)}: column '{column}' holds {values[row]:g}, or a number too large for "
                "float32; correct it, or let such numbers read as missing by train.on_nonfinite = 'skip'"
            )
        return np.where(infinite, np.float32(np.nan), values)

    def _single(self, feature: IdColumn, arrays: dict[str, pa.Array], group: int) -> Ints:
        if feature.number is not None:
            return feature.number(arrays)
        ids = ints(arrays[feature.column], NULL_ID)
        at = _not_a_row(feature, ids)
        if at is not None:
            raise _wrong_id(feature, int(ids[at]), self._where(group, at))
        return ids

    def _bags(self, arrays: dict[str, pa.Array], group: int) -> Iterator[Bag]:
        """The bags in the order of `ReadColumns.bags`."""
        for each in self.columns.bags:
            if each.sequence is None:
                yield self._bag(each, arrays, group)
        for sequence in self.columns.sequences:
            of_it = [each for each in self.columns.bags if each.sequence == sequence.name]
            where = partial(self._where, group)
            bags = read_behaviours(sequence, arrays, self.columns.time, where)
            for each, bag in zip(of_it, bags, strict=True):
                self._check_ids(each, bag.values, bag.offsets, group)
                yield bag

    def _bag(self, feature: IdColumn, arrays: dict[str, pa.Array], group: int) -> Bag:
        lists = arrays[feature.column]
        lengths = _lengths(lists)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids, weights = ints(lists.flatten(), NULL_ID), None
        self._check_ids(feature, ids, offsets, group)
        if feature.weights is not None:
            parallel = arrays[feature.weights]
            differing = np.flatnonzero(_lengths(parallel) != lengths)
            if len(differing):
                row = int(differing[0])
                raise UserError(
                    f"{self._where(group, row)}: column '{feature.weights}' has "
                    f"{_lengths(parallel)[row]} weights for the {lengths[row]} ids of "
                    f"'{feature.column}'; write one weight for every id"
                )
            found = self._finite(
                floats(parallel.flatten()),
                feature.weights,
                lambda at: self._where(group, int(np.searchsorted(offsets, at, side="right")) - 1),
            )
            weights = np.nan_to_num(found, nan=0.0)
        return Bag(offsets, ids, weights)

    def _check_ids(self, feature: IdColumn, ids: Ints, offsets: Ints, group: int) -> None:
        """Refuse an id of a bag that may not stand there."""
        at = _not_a_row(feature, ids)
        if at is not None:
            row = int(np.searchsorted(offsets, at, side="right")) - 1
            raise _wrong_id(feature, int(ids[at]), self._where(group, row))

    def _where(self, group: int, row: int) -> str:
        """A filtered row of a row group in words: `part-0.parquet: row group 3, row 17`."""
        return f"{self.source.where(group)}, row {self.row_numbers(group)[row]}"

    def _label(
        self, label: LabelColumn, arrays: dict[str, pa.Array], place: tuple[int, Ints | None]
    ) -> tuple[Floats, Floats]:
        """Labels with 0 for missing ones, and where they are valid."""
        (group, numbers), source = place, self.source
        space = (label.valid, arrays[label.valid]) if label.valid is not None else None
        values, valid = label_and_valid(
            (label.column, arrays[label.column]), space, source.where(group)
        )
        if label.negative_rate < 1 and numbers is not None:
            file = source.files[source.group_file[group]].name
            seed = name_seed(f"{self.seed}/{file}/{source.group_index[group]}")
            kept = sample_rows(numbers, label.negative_rate, seed) | (values == 1)
            valid = valid * kept.astype(np.float32)
        return values, valid

    def _check_chain(self, labels: list[tuple[Floats, Floats]], group: int) -> None:
        """Refuse rows that have a label without the one before it."""
        columns = [each.column for each in self.columns.labels]
        for at, (before, after) in enumerate(pairwise(labels)):
            wrong = np.flatnonzero((after[0] * after[1] > 0) & (before[0] == 0) & (before[1] > 0))
            if len(wrong):
                raise UserError(
                    f"{self._where(group, int(wrong[0]))}: label '{columns[at + 1]}' is 1 and "
                    f"'{columns[at]}' is 0, but the model takes the tasks for steps that follow each "
                    "other; list the tasks in that order, correct the labels, or set "
                    "model.strict_labels = false"
                )


def _not_a_row(feature: IdColumn, ids: Ints) -> int | None:
    """Where the first id is that may not stand there; None where there is no such id."""
    if not feature.is_strict:
        return None
    unknown = outside(ids, feature.encoder.rows.known)
    if unknown is None:
        return None
    wrong = np.flatnonzero(unknown & (ids != NULL_ID))
    return int(wrong[0]) if len(wrong) else None


def _wrong_id(feature: IdColumn, value: int, where: str) -> UserError:
    return UserError(
        f"{where}: feature '{feature.feature}': column '{feature.column}' holds id {value}, but its "
        f"table has rows for 0 to {feature.encoder.rows.known - 1} only; correct the data or the "
        "number of ids, or set out_of_range = 'unknown'"
    )


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    return ints(pc.list_value_length(lists), 0)


def _check_sorted(column: pa.ChunkedArray, name: str, where: str) -> None:
    if column.null_count:
        raise UserError(
            f"{where}: column '{name}' has null times, which data.order = 'time' cannot place; "
            "fill them or filter them out"
        )
    times = column.to_numpy()
    if (times[1:] < times[:-1]).any():
        raise UserError(
            f"{where}: rows are not sorted by '{name}', as data.order = 'time' needs; write files "
            "sorted by it (`prismrec data prepare` does)"
        )
