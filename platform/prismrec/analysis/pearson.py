"""Pearson correlation of numbers of which some may be unknown."""

from __future__ import annotations

import math

import numpy as np

from prismrec.train.metrics.arrays import Floats

CONSTANT = 1e-6
"""Spread of numbers over the largest of them below which they say nothing of each other."""
FEWEST = 3
"""Numbers that a correlation is taken of at least; any two points lie on a line."""


def pearson(first: Floats, second: Floats, of_constant: float = math.nan) -> float:
    """Correlation, -1 to 1, over the places where neither is NaN.

    Args:
        first: numbers of any shape.
        second: numbers of the same shape.
        of_constant: what comes back where either does not vary.

    Returns:
        NaN where fewer than `FEWEST` places are known in both.
    """
    x, y = known_in_both(first, second)
    if len(x) < FEWEST:
        return math.nan
    if _is_constant(x) or _is_constant(y):
        return of_constant
    return float(np.corrcoef(x, y)[0, 1])


def known_in_both(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """(n,) the numbers of each where neither is NaN."""
    x, y = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known]


def _is_constant(values: Floats) -> bool:
    return bool(values.max() - values.min() <= CONSTANT * np.abs(values).max())
