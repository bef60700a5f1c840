"""How well a learned map of correlations follows the mutual information in the data.

The source publishes one number a model without saying how it is made. Taken from its published maps, it
is the Pearson correlation over positions of the row of the target's own category (0.9895 where 0.9894 is
published); the whole map gives another number. Both are here.

Source: "Temporal Interest Network for User Response Prediction" (WWW 2024), table of correlation.

Notation: K categories, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prismrec.analysis.correlation.information import Floats

CONSTANT = 1e-6
"""Spread of a row over its largest number below which it says nothing of positions."""
_UPPER = 2.3263478740408408
"""Above which a standard normal variable is once in a hundred times."""
FEWEST = 3
"""Positions that a row is judged on at least; any two points lie on a line."""


def pearson(first: Floats, second: Floats) -> float:
    """Pearson correlation of two maps, -1 to 1, over the cells that both have.

    Returns:
        0 where either is constant: it says nothing of the other. NaN where fewer than `FEWEST` cells
        are known in both.
    """
    x, y = _known(first, second)
    if len(x) < FEWEST:
        return math.nan
    if _is_constant(x) or _is_constant(y):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / math.sqrt((x @ x) * (y @ y)))


def spearman(first: Floats, second: Floats) -> float:
    """Pearson correlation of the ranks, equal numbers sharing their mean rank; see `pearson`."""
    x, y = _known(first, second)
    return pearson(_ranks(x), _ranks(y))


def _known(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    x, y = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known]


def _is_constant(values: Floats) -> bool:
    spread = values.max() - values.min()
    return bool(spread <= CONSTANT * np.abs(values).max())


def _ranks(values: Floats) -> Floats:
    """Mean ranks from 0."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Floats = np.cumsum(counts) - (counts + 1) / 2
    return means[place]


def tells_apart(values: Floats, errors: Floats) -> bool:
    """Whether values differ by more than chance: in less than one row of a hundred whose values are equal.

    By the sum of squares about their weighted mean over the squared errors, which is then chi-squared with
    P - 1 degrees of freedom; its quantile is that of Wilson and Hilferty.

    Args:
        values: (P,).
        errors: (P,) their standard errors.
    """
    if not (errors > 0).all() or len(values) < 2:
        return False
    weights = errors**-2.0
    mean = (weights * values).sum() / weights.sum()
    freedom = len(values) - 1
    part = 2 / (9 * freedom)
    quantile = freedom * (1 - part + _UPPER * math.sqrt(part)) ** 3
    return bool((weights * (values - mean) ** 2).sum() > quantile)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one model, by target category.

    Args:
        own: (K,) Pearson correlation over positions of the row of the target's own category; the
            score that the source publishes.
        pearson: (K,) of the whole map of a target category.
        spearman: (K,) the same of ranks.
    """

    own: Floats
    pearson: Floats
    spearman: Floats

    def mean(self, categories: int) -> float:
        """Mean of `own` over the most frequent target categories that have one; NaN if none has."""
        return _mean(self.own[:categories])

    @property
    def mean_pearson(self) -> float:
        """Mean of `pearson` over all target categories that have one."""
        return _mean(self.pearson)

    @property
    def mean_spearman(self) -> float:
        """Mean of `spearman` over all target categories that have one."""
        return _mean(self.spearman)


def score(truth: Floats, learned: Floats) -> Scores:
    """Hold a learned map against the mutual information in the data.

    Args:
        truth: (K, K, P) by target category, category of the behaviour and position.
        learned: the same; NaN where there was nothing to learn from.
    """
    pairs = list(zip(truth, learned, strict=True))
    return Scores(
        own=np.array([pearson(x[c], y[c]) for c, (x, y) in enumerate(pairs)]),
        pearson=np.array([pearson(x, y) for x, y in pairs]),
        spearman=np.array([spearman(x, y) for x, y in pairs]),
    )


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
