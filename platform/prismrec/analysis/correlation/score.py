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
from scipy.stats import chi2, rankdata

from prismrec.analysis.pearson import known_in_both, pearson
from prismrec.train.metrics.arrays import Floats

CHANCE = 0.01
"""Share of equal rows that are still said to tell positions apart."""


def spearman(first: Floats, second: Floats) -> float:
    """Pearson correlation of the ranks, equal numbers sharing their mean rank; 0 where either is constant."""
    x, y = known_in_both(first, second)
    return pearson(rankdata(x), rankdata(y), of_constant=0.0)


def tells_apart(values: Floats, errors: Floats) -> bool:
    """Whether values differ by more than chance: in less than one row of a hundred whose values are equal.

    By the sum of squares about their weighted mean over the squared errors, which is then chi-squared with
    P - 1 degrees of freedom.

    Args:
        values: (P,).
        errors: (P,) their standard errors.
    """
    if not (errors > 0).all() or len(values) < 2:
        return False
    weights = errors**-2.0
    mean = (weights * values).sum() / weights.sum()
    squares = (weights * (values - mean) ** 2).sum()
    return bool(squares > chi2.isf(CHANCE, len(values) - 1))


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
        own=np.array([pearson(x[c], y[c], of_constant=0.0) for c, (x, y) in enumerate(pairs)]),
        pearson=np.array([pearson(x, y, of_constant=0.0) for x, y in pairs]),
        spearman=np.array([spearman(x, y) for x, y in pairs]),
    )


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
