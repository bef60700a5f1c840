"""Weights against repeated exposure, and the table that one estimator of them is fitted to.

Notation: n rows, k the number of an exposure of a user to an item, from 1; e its expectation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prismrec.config import Recipe, UserError
from prismrec.config.propensity import Propensity
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.filters import row_filter
from prismrec.data.lanes import Share
from prismrec.data.rows import Floats, Ints
from prismrec.data.skipped import Skipped, attempt
from prismrec.data.source import DataSource
from prismrec.data.values import floats, ints, one_array

MAX_VALUES = 100_000
"""Values of `by` that a table may hold: it is kept in the recipe of the run."""

Doubles = NDArray[np.float64]


def weights_of(section: Propensity, column: pa.Array, by: pa.Array | None) -> Floats:
    """(n,) the weights of rows, in [floor, 1] and never more for a larger e.

    Args:
        section: how they are made; the table of `fitted` is filled in.
        column: values of its column.
        by: values of the column it names by `by`, if any.
    """
    if section.estimator == "fitted":
        assert by is not None
        expected = _looked_up(section, ints(by, NULL_ID))
    else:
        expected = exposures(section, column)
        if section.estimator == "log":
            expected = 1 + section.scale * np.log(expected)
    weights = np.clip(expected**-section.tau, section.floor, 1.0)
    return weights.astype(np.float32)


def exposures(section: Propensity, column: pa.Array) -> Doubles:
    """(n,) the number k of each exposure, at least 1."""
    k = floats(column).astype(np.float64) - section.first + 1
    return np.where(k > 1, k, 1.0)  # a missing value, NaN, is not above 1 either


def _looked_up(section: Propensity, by: Ints) -> Doubles:
    values = np.asarray(section.values, np.int64)
    expected = np.asarray(section.expected, np.float64)
    if not len(values):
        return np.full(len(by), expected[-1])
    at = np.minimum(np.searchsorted(values, by), len(values) - 1)
    return np.where(values[at] == by, expected[at], expected[-1])


@dataclass(frozen=True, slots=True)
class ExposureSums:
    """Rows and exposures of the values of a column.

    Args:
        values: (v,) ascending.
        rows: (v,) rows with the value.
        exposures: (v,) the sum of their k.
    """

    values: Ints
    rows: Doubles
    exposures: Doubles

    @classmethod
    def of(cls, parts: Iterable[ExposureSums]) -> ExposureSums:
        """Those of several parts of the rows together."""
        every = list(parts)
        values, place = np.unique(
            np.concatenate([np.empty(0, np.int64), *(each.values for each in every)]),
            return_inverse=True,
        )
        rows = np.concatenate([np.empty(0), *(each.rows for each in every)])
        seen = np.concatenate([np.empty(0), *(each.exposures for each in every)])
        return cls(values, _summed(place, rows, len(values)), _summed(place, seen, len(values)))

    def fitted(self, section: Propensity) -> Propensity:
        """The section with its table: means of k, drawn to the mean over all by `prior_rows`."""
        rows, total = self.rows.sum(), self.exposures.sum()
        mean = total / rows if rows else 1.0
        expected = (self.exposures + section.prior_rows * mean) / (self.rows + section.prior_rows)
        table = {"values": tuple(self.values.tolist()), "expected": (*expected.tolist(), mean)}
        return section.model_copy(update=table)


def exposure_sums(
    source: DataSource, recipe: Recipe, section: Propensity, share: Share
) -> ExposureSums:
    """One pass over one rank's part of the training rows; two columns are read.

    Raises:
        UserError: the column has too many values for a table, or cannot be used so.
    """
    check_columns(source, section)
    rows = row_filter(recipe.data.splits.train, source, "data.splits.train")
    sums = ExposureSums.of([])
    skipped = Skipped(source) if recipe.data.on_bad_file == "skip" else None
    for group in range(share.rank, len(source.group_rows), share.world_size):
        file = int(source.group_file[group])
        fragment = source.fragments(file)[source.group_index[group]]
        read = partial(
            fragment.to_table,
            columns=list(section.columns),
            filter=rows.expression,
            schema=source.arrow(file),
        )
        table = attempt(skipped, source, group, read)
        if table is None:
            continue
        column, by = (one_array(table.column(name)) for name in section.columns)
        values, place = np.unique(ints(by, NULL_ID), return_inverse=True)
        seen = exposures(section, column)
        rows_of = _summed(place, np.ones_like(seen), len(values))
        found = ExposureSums(values, rows_of, _summed(place, seen, len(values)))
        sums = ExposureSums.of([sums, found])
        if len(sums.values) > MAX_VALUES:
            raise UserError(
                f"tasks.propensity.by: '{section.by}' has more than {MAX_VALUES} values, too many "
                "for a table; name a column with fewer, such as a category, or use another estimator"
            )
    return sums


def _summed(place: Ints, numbers: Doubles, count: int) -> Doubles:
    """(count,) the sum of the numbers at each place."""
    return np.bincount(place, numbers, count).astype(np.float64)


def check_columns(source: DataSource, section: Propensity) -> None:
    """Refuse columns that are missing or of a kind that says nothing about exposures.

    Raises:
        UserError: which one, and what is needed.
    """
    source.schema.column(section.column, ("number",), "tasks.propensity.column")
    if section.by is not None:
        source.schema.column(section.by, ("id",), "tasks.propensity.by")
