"""AUC as three sums over (positive, negative) pairs, which add up over ranges of scores.

With the distinct scores of a segment in ascending order, P[k] and N[k] the weight of its
positives and negatives at the k-th, and C[k] the weight of its negatives below it:

    AUC = sum_k P[k] (C[k] + N[k] / 2) / (sum_k P[k] * sum_k N[k])

so rows of equal score count one half whatever their order. A row with a label between 0 and 1
is that part of a positive and the rest of a negative.
"""

from __future__ import annotations

import numpy as np

from prismrec.train.metrics.arrays import Floats, Ints, ratio, run_starts

POSITIVE, NEGATIVE, CONCORDANT = 0, 1, 2


def pair_sums(
    segment: Ints, scores: Floats, labels: Floats, weights: Floats, num_segments: int
) -> Floats:
    """Weight of positives, of negatives, and of concordant pairs, for every segment.

    Args:
        segment: (n,) segment of each row, 0 to num_segments - 1. The rows lie in ascending
            order of (segment, score).
        scores: (n,) any score; a NaN makes the concordant weight of its segment NaN.
        labels: (n,) in [0, 1].
        weights: (n,) at least 0.
        num_segments: V.

    Returns:
        (V, 3), columns POSITIVE, NEGATIVE and CONCORDANT; zeros for a segment without rows.
    """
    sums = np.zeros((num_segments, 3))
    starts = run_starts(segment, scores)
    if not starts.size:
        return sums
    mass = weights * labels
    positive, negative = np.add.reduceat(mass, starts), np.add.reduceat(weights - mass, starts)
    run_segment = segment[starts]
    below = np.concatenate(([0.0], np.cumsum(negative)[:-1]))
    firsts = run_starts(run_segment)
    below -= np.repeat(below[firsts], np.diff(firsts, append=starts.size))
    concordant = positive * (below + 0.5 * negative)
    concordant[np.isnan(scores[starts])] = np.nan
    for column, values in enumerate((positive, negative, concordant)):
        sums[:, column] = np.bincount(run_segment, values, num_segments)
    return sums


def joined_pair_sums(parts: Floats) -> Floats:
    """Pair sums of consecutive ranges of scores, lowest range first, joined: (W, V, 3) to (V, 3).

    No score may occur in two ranges.
    """
    negative = parts[..., NEGATIVE]
    below = np.cumsum(negative, axis=0) - negative
    sums: Floats = parts.sum(axis=0)
    sums[..., CONCORDANT] += (parts[..., POSITIVE] * below).sum(axis=0)
    return sums


def auc_of(sums: Floats) -> Floats:
    """AUC from pair sums (V, 3); NaN where a segment lacks positives or negatives."""
    return ratio(sums[..., CONCORDANT], sums[..., POSITIVE] * sums[..., NEGATIVE])
