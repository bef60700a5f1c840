"""Counts over strictly earlier days: features a server knows before the day begins."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PRIOR_ROWS = 20.0
"""Rows of the mean that are mixed into a rate, so that a rate of few rows stays near it."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def sums_before(keys: Ints, days: Ints, values: Floats) -> tuple[Floats, Floats]:
    """How many rows, and what sum of `values`, a row's key has on days before the row's own.

    Args:
        keys: (rows,) any integers of at least 0.
        days: (rows,) 0 for the first day, not over 100,000.
        values: (rows,).

    >>> days = np.array([0, 0, 1, 1, 3])
    >>> sums_before(np.array([7, 7, 7, 8, 7]), days, np.array([1.0, 0, 1, 1, 0]))
    (array([0., 0., 2., 0., 3.]), array([0., 0., 1., 0., 2.]))
    """
    span = int(days.max(initial=0)) + 1
    cells, cell_of_row = np.unique(keys * span + days, return_inverse=True)
    key_of_cell = cells // span
    first_of_key = np.searchsorted(key_of_cell, key_of_cell, side="left")

    def before(per_cell: Floats) -> Floats:
        running = np.concatenate([[0.0], np.cumsum(per_cell)[:-1]])
        return (running - running[first_of_key])[cell_of_row]

    rows = np.bincount(cell_of_row, minlength=len(cells)).astype(np.float64)
    sums = np.bincount(cell_of_row, weights=values, minlength=len(cells)).astype(np.float64)
    return before(rows), before(sums)


def lift_before(keys: Ints, days: Ints, outcome: Floats) -> tuple[pa.Array, pa.Array]:
    """A key's log count and its rate's distance from everyone's, both over earlier days.

    The rate is smoothed towards everyone's by `PRIOR_ROWS`, so 0 means "nothing known" as
    well as "like everyone". Rows of the first day are null.

    Returns:
        ln(1 + rows before) and the lift, float32.
    """
    rows, hits = sums_before(keys, days, outcome)
    all_rows, all_hits = sums_before(np.zeros_like(keys), days, outcome)
    mean = all_hits / np.maximum(all_rows, 1)
    lift = (hits + PRIOR_ROWS * mean) / (rows + PRIOR_ROWS) - mean
    first_day = all_rows == 0
    return (
        pa.array(np.log1p(rows).astype(np.float32), mask=first_day),
        pa.array(lift.astype(np.float32), mask=first_day),
    )
