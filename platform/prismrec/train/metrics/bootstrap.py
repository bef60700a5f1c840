"""Bootstrap intervals of AUC and of the difference of two models' AUC.

A resample gives every row, or every group of rows, a Poisson(1) weight, so rows are sorted once
and a resample is one pass over them. The weight comes from a hash of (seed, resample, key):
it does not depend on which process draws it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prismrec.train.metrics.arrays import (
    Floats,
    Ints,
    checked_ids,
    checked_rows,
    mix64,
    run_starts,
)
from prismrec.train.metrics.pairs import auc_of

_WORDS_PER_HASH = 4


def _poisson_table() -> NDArray[np.uint8]:
    """The Poisson(1) count of each 16-bit word: its quantile at the middle of the word's share."""
    chances = np.exp(-1.0) / np.cumprod(np.concatenate(([1.0], np.arange(1.0, 12.0))))
    middles = (np.arange(2**16) + 0.5) / 2**16
    return np.searchsorted(np.cumsum(chances), middles).astype(np.uint8)


_POISSON = _poisson_table()


@dataclass(frozen=True)
class Resampling:
    """How a bootstrap interval is drawn.

    Args:
        count: number of resamples, at least 1.
        seed: equal seeds give equal intervals.
        confidence: share of the resamples between the two ends, in (0, 1).
    """

    count: int = 1000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def draws(self, keys: Ints) -> Iterator[NDArray[np.uint8]]:
        """Weights of one resample after the other, each (n,), the same for equal keys."""
        mixed = mix64(keys)
        seed = mix64(np.array([self.seed % 2**64], np.uint64))
        for first in range(0, self.count, _WORDS_PER_HASH):
            salt = mix64(seed + np.uint64(first))
            words = mix64(mixed ^ salt).view(np.uint16).reshape(-1, _WORDS_PER_HASH)
            for word in range(min(_WORDS_PER_HASH, self.count - first)):
                yield _POISSON[words[:, word]]

    def interval(self, values: Floats) -> tuple[float, float]:
        """Lower and upper end among the values of the resamples; those without one are left out."""
        found = values[np.isfinite(values)]
        if not found.size:
            return float("nan"), float("nan")
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(found, (tail, 1 - tail))
        return float(low), float(high)


class ResampledPairs:
    """Pair sums of rows in ascending order of score, for any number of resamples.

    Args:
        scores: (n,) ascending, NaN last.
        labels: (n,) in [0, 1].
        weights: (n,) at least 0.
    """

    def __init__(self, scores: Floats, labels: Floats, weights: Floats) -> None:
        starts = run_starts(scores)
        lengths = np.diff(starts, append=scores.size)
        self._rows = np.flatnonzero(labels > 0)
        self._positive = (weights * labels)[self._rows]
        self._negative = weights * (1 - labels)
        self._low = np.repeat(starts, lengths)[self._rows]
        self._high = np.repeat(starts + lengths, lengths)[self._rows]
        self._below = np.zeros(scores.size + 1)
        self._has_nan = bool(np.isnan(scores[-1:]).any())

    def sums(self, draws: NDArray[np.uint8]) -> tuple[float, float, float]:
        """Weight of positives, negatives and concordant pairs under the weights of one resample."""
        below = self._below
        np.cumsum(self._negative * draws, out=below[1:])
        positive = self._positive * draws[self._rows]
        concordant = 0.5 * float(positive @ (below[self._low] + below[self._high]))
        return (
            float(positive.sum()),
            float(below[-1]),
            float("nan") if self._has_nan else concordant,
        )


def canonical_order(scores: Floats, labels: Floats, weights: Floats) -> Ints:
    """Order of rows by score, then label, then weight: rows it leaves tied are interchangeable."""
    return np.lexsort((weights, labels, scores)).astype(np.int64)


def resampled_sums(
    scores: Floats, labels: Floats, weights: Floats, keys: Ints, resampling: Resampling
) -> Floats:
    """Pair sums (R, 3) of every resample, for rows in ascending order of score."""
    pairs = ResampledPairs(scores, labels, weights)
    return np.array([pairs.sums(draws) for draws in resampling.draws(keys)])


def bootstrap_auc(
    scores: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    resampling: Resampling | None = None,
) -> tuple[float, float]:
    """Lower and upper end of the bootstrap interval of AUC; NaN where AUC has no value.

    Args:
        scores: (n,) any score.
        labels: (n,) in [0, 1].
        weights: (n,) at least 0; 1 if None.
        groups: (n,) integer ids; rows of a group enter or leave a resample together, as rows of
            one user should. None resamples rows.
        resampling: 1,000 resamples, seed 0 and 95 % if None.
    """
    score, label, weight = checked_rows(scores, labels, weights)
    order = canonical_order(score, label, weight)
    keys = np.arange(score.size, dtype=np.int64)
    if groups is not None:
        keys = checked_ids(groups, weights, score.size)[order]
    drawn = resampling or Resampling()
    sums = resampled_sums(score[order], label[order], weight[order], keys, drawn)
    return drawn.interval(auc_of(sums))


def bootstrap_auc_difference(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    resampling: Resampling | None = None,
) -> tuple[float, float]:
    """Interval of AUC(b) - AUC(a), two models scoring the same rows under the same resamples.

    An interval that leaves out 0 says that the rows tell the models apart. Arguments as for
    `bootstrap_auc`.
    """
    drawn = resampling or Resampling()
    b, _, _ = checked_rows(scores_b, labels, weights)
    a, label, weight = checked_rows(scores_a, labels, weights)
    keys = np.arange(a.size, dtype=np.int64)
    if groups is not None:
        keys = checked_ids(groups, weights, a.size)
    orders = [np.argsort(score) for score in (a, b)]
    pairs = [
        ResampledPairs(score[order], label[order], weight[order])
        for score, order in zip((a, b), orders, strict=True)
    ]
    sums = np.array(
        [
            [model.sums(draws[order]) for model, order in zip(pairs, orders, strict=True)]
            for draws in drawn.draws(keys)
        ]
    )
    auc_a, auc_b = auc_of(sums).T
    return drawn.interval(auc_b - auc_a)
