"""Calibration of probabilities in bins of equal width or of equal mass.

Bins of equal mass cut the rows, in ascending order of score, into parts of equal weight. Rows of
equal score that lie across a cut are shared out in proportion, all alike: the result depends
neither on the order of rows nor on how they are spread over ranks, and a constant at the base
rate has an error of 0 in any number of bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prismrec.train.metrics.arrays import Floats, checked_rows, ratio, run_starts


@dataclass(frozen=True)
class CalibrationCurve:
    """Sums of each bin, lowest probabilities first; K bins.

    Args:
        weight: (K,) weight of the rows.
        predicted: (K,) weighted sum of probabilities.
        observed: (K,) weighted sum of labels.
    """

    weight: Floats
    predicted: Floats
    observed: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: mean over rows of a bin's |mean label - mean probability|."""
        return float(ratio(np.abs(self.observed - self.predicted).sum(), self.weight.sum()))

    @property
    def points(self) -> tuple[Floats, Floats]:
        """Mean probability and mean label of the bins that hold rows, to draw one over the other."""
        filled = self.weight > 0
        weight = self.weight[filled]
        return self.predicted[filled] / weight, self.observed[filled] / weight


def calibration_curve(
    probabilities: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    bins: int = 100,
    equal_mass: bool = True,
) -> CalibrationCurve:
    """Predicted and observed positives by probability.

    Args:
        probabilities: (n,) in [0, 1].
        labels: (n,) in [0, 1].
        weights: (n,) at least 0; 1 if None.
        bins: number of bins, at least 1.
        equal_mass: bins of equal weight of rows; otherwise [k/K, (k+1)/K), the last one closed.
    """
    p, label, weight = checked_rows(probabilities, labels, weights)
    if not equal_mass:
        return CalibrationCurve(*width_sums(p, label, weight, bins))
    order = np.argsort(p)
    p, label, weight = p[order], label[order], weight[order]
    total = float(weight.sum())
    return curve_of(mass_sums(p, p, label, weight, mass_cuts(total, bins)), total)


def expected_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    bins: int = 100,
    equal_mass: bool = False,
) -> float:
    """Sum over bins of |sum w (y - p)|, over sum w; arguments as for `calibration_curve`."""
    return calibration_curve(probabilities, labels, weights, bins, equal_mass).error


def width_sums(probabilities: Floats, labels: Floats, weights: Floats, bins: int) -> Floats:
    """Weight, predicted and observed in K bins of equal width, (3, K); adds up over ranks."""
    place = np.minimum(np.nan_to_num(probabilities) * bins, bins - 1).astype(np.int64)
    columns = (weights, weights * probabilities, weights * labels)
    return np.stack([np.bincount(place, column, bins) for column in columns])


def mass_cuts(total: float, bins: int) -> Floats:
    """The K + 1 cumulative weights between which the bins of equal mass lie."""
    return total * np.arange(bins + 1) / bins


def mass_sums(
    scores: Floats, probabilities: Floats, labels: Floats, weights: Floats, cuts: Floats
) -> Floats:
    """Predicted and observed sums over the rows below each cut, (2, K + 1).

    The rows lie in ascending order of `scores`; `cuts` are cumulative weights counted from the
    first of them, and may lie before it or past the last one. Adds up over consecutive ranges
    of scores when each range takes off the weight of those before it.
    """
    starts = run_starts(scores)
    if not starts.size:
        return np.zeros((2, cuts.size))

    def cumulative(column: Floats) -> Floats:
        return np.concatenate(([0.0], np.cumsum(np.add.reduceat(column, starts))))

    mass = cumulative(weights)
    columns = (weights * probabilities, weights * labels)
    return np.stack([np.interp(cuts, mass, cumulative(column)) for column in columns])


def curve_of(sums_below: Floats, total: float) -> CalibrationCurve:
    """The curve in K bins of equal mass from the sums of `mass_sums` over all rows."""
    bins = sums_below.shape[1] - 1
    predicted, observed = np.diff(sums_below, axis=1)
    return CalibrationCurve(np.full(bins, total / bins), predicted, observed)
