"""Fitting what is known of a recipe's numbers: one pass over its training rows, and only those."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.numbers import NumberFeature
from prismrec.data.encode.numbers.encoders import number_source
from prismrec.data.encode.numbers.quantise import Doubles
from prismrec.data.encode.numbers.sample import SAMPLE_SIZE, Sample, quantiles
from prismrec.data.encode.numbers.source import NumberSource
from prismrec.data.encode.numbers.statistics import FORMAT, NumberStatistics, StatisticsFile
from prismrec.data.lookup import filtered_tables
from prismrec.data.rows import Ints
from prismrec.data.source import DataSource
from prismrec.data.values import one_array
from prismrec.data.write import Progress

LOW, HIGH = 0.001, 0.999
"""Shares of the training rows that lie below the range of a number, and below its end."""


class _Fitted:
    """What has been seen of one number so far."""

    def __init__(self, number: NumberFeature, source: NumberSource, size: int, seed: int) -> None:
        self.number, self.source = number, source
        self._sample = Sample(size, seed)
        self._missing = self._infinite = 0
        self._least, self._most, self._sum = np.inf, -np.inf, 0.0

    def add(self, arrays: Mapping[str, pa.Array], rows: Ints) -> None:
        """Take some rows of its columns."""
        values: Doubles = self.source(arrays)
        if self.number.encoding.is_magnitude:
            values = np.abs(values)
        is_missing, is_finite = np.isnan(values), np.isfinite(values)
        self._missing += int(is_missing.sum())
        self._infinite += int((~is_missing & ~is_finite).sum())
        if is_finite.any():
            values, rows = values[is_finite], rows[is_finite]
            self._least = min(self._least, values.min())
            self._most = max(self._most, values.max())
            self._sum += float(values.sum())
            self._sample.add(values, rows)

    def join(self, other: _Fitted) -> None:
        """Take what was seen in the rows that follow."""
        self._missing += other._missing
        self._infinite += other._infinite
        self._least, self._most = min(self._least, other._least), max(self._most, other._most)
        self._sum += other._sum
        self._sample.join(other._sample)

    def statistics(self) -> NumberStatistics:
        """What there is to know of it.

        Raises:
            UserError: it has no finite value.
        """
        rising, count = self._sample.values(), self._sample.count
        if not count:
            raise UserError(
                f"features.numbers '{self.number.name}': {self.source.text} holds no number in the "
                "training rows; leave the number out, or correct data.splits.train"
            )
        shares = self.number.encoding.shares
        low, high = quantiles(rising, (LOW, HIGH))
        return NumberStatistics(
            source=self.source.text,
            is_magnitude=self.number.encoding.is_magnitude,
            values=count,
            missing=self._missing,
            infinite=self._infinite,
            least=float(self._least),
            most=float(self._most),
            mean=self._sum / count,
            low=low,
            high=high,
            shares=list(shares),
            quantiles=quantiles(rising, shares),
            sample=len(rising),
        )


class PartFit:
    """What is known of a recipe's numbers from some of its training rows.

    The same rows in the same order give the same statistics, however they are cut into files, row
    groups and parts; memory is that of a row group and of a sample for each number.

    Args:
        recipe: numbers, training rows and seed.
        source: the data set.
        size: most values that are kept of a number; a longer column is told by a sample.

    Raises:
        UserError: no number needs statistics, or a column is missing or of another kind.
    """

    def __init__(self, recipe: Recipe, source: DataSource, size: int = SAMPLE_SIZE) -> None:
        self._conditions = recipe.data.splits.train
        self._fitted = [
            _Fitted(each, number_source(recipe, index, source.schema), size, recipe.seed)
            for index, each in enumerate(recipe.features.numbers)
            if each.encoding.is_fitted
        ]
        if not self._fitted:
            raise UserError(
                "features.numbers: no number of the recipe is encoded by statistics; nothing to fit"
            )
        self._rows = 0

    def read(
        self,
        source: DataSource,
        first: int = 0,
        groups: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take the training rows of some row groups, and no others.

        Args:
            source: the data set.
            first: training rows before these row groups.
            groups: row groups, in rising order; all if not given.
            progress: called after every row group with how many are read and how many there are.

        Raises:
            UserError: a column is missing, or a row group cannot be decoded.
        """
        names = list(dict.fromkeys(name for each in self._fitted for name in each.source.columns))
        total = len(source.group_rows) if groups is None else len(groups)
        where = "data.splits.train"
        tables = filtered_tables(source, self._conditions, names, where, groups)
        for done, table in enumerate(tables, 1):
            arrays = {name: one_array(table.column(name)) for name in names}
            start = first + self._rows
            for each in self._fitted:
                each.add(arrays, np.arange(start, start + table.num_rows))
            self._rows += table.num_rows
            if progress is not None:
                progress(done, total)

    def join(self, other: PartFit) -> None:
        """Take what was seen in the training rows that follow."""
        for mine, theirs in zip(self._fitted, other._fitted, strict=True):
            mine.join(theirs)
        self._rows += other._rows

    def statistics(self, source: DataSource) -> StatisticsFile:
        """What is known, once all row groups were read.

        Raises:
            UserError: a number has no value.
        """
        return StatisticsFile(
            format=FORMAT,
            data=source.fingerprint,
            where=list(self._conditions),
            rows=self._rows,
            numbers={each.number.name: each.statistics() for each in self._fitted},
        )


def fit_numbers(
    recipe: Recipe,
    source: DataSource,
    size: int = SAMPLE_SIZE,
    progress: Progress | None = None,
) -> StatisticsFile:
    """The statistics of every number of a recipe that needs some, in one pass over its training rows.

    Args:
        recipe: numbers, training rows and seed.
        source: the data set.
        size: most values that are kept of a number; a longer column is told by a sample.
        progress: called after every row group with how many are read and how many there are.

    Raises:
        UserError: no number needs statistics, a column is missing or of another kind, or a number
            has no value.
    """
    fit = PartFit(recipe, source, size)
    fit.read(source, progress=progress)
    return fit.statistics(source)


def write_statistics(fitted: StatisticsFile, out: Path) -> None:
    """Write the file, or another in its place; it appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        draft.write_text(fitted.model_dump_json(indent=1) + "\n")
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
