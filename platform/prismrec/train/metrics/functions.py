"""The metrics of one binary task on arrays of one process; definitions in docs/metrics.md.

Rows of weight 0 count nowhere. A metric without a value, such as the AUC of labels that are all
equal, or any metric of scores that hold a NaN, is NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from prismrec.train.metrics.arrays import (
    Floats,
    Ints,
    checked_ids,
    checked_rows,
    ratio,
    run_starts,
)
from prismrec.train.metrics.pairs import CONCORDANT, NEGATIVE, POSITIVE, auc_of, pair_sums

GroupWeight = Literal["impressions", "clicks", "equal"]


def sigmoid(logits: ArrayLike) -> Floats:
    """Probabilities of logits, exact at both ends."""
    z = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z < 0, small, 1.0) / (1.0 + small)


def row_log_loss(logits: Floats, labels: Floats) -> Floats:
    """Binary cross-entropy of each row in nats, from logits: softplus(z) - y z.

    An infinite logit costs nothing where it is right and infinity where it is wrong.
    """
    size = np.abs(logits)
    wrong = np.where(logits > 0, 1.0 - labels, labels)
    missed = np.multiply(size, wrong, out=np.zeros_like(size), where=wrong > 0)
    return np.log1p(np.exp(-size)) + missed


def auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Chance that a positive scores above a negative, equal scores counting one half.

    >>> auc([0.9, 0.8, 0.7, 0.7, 0.2, 0.1], [1, 0, 1, 0, 0, 1])
    0.5
    """
    score, label, weight = checked_rows(scores, labels, weights)
    order = np.argsort(score)
    everything = np.zeros(score.size, np.int64)
    return float(auc_of(pair_sums(everything, score[order], label[order], weight[order], 1))[0])


def gauc(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    weights: ArrayLike | None = None,
    group_weight: GroupWeight = "impressions",
) -> float:
    """Mean AUC within groups, over the groups that have both classes.

    Args:
        scores: (n,) any score.
        labels: (n,) in [0, 1].
        groups: (n,) integer id of the user or request of each row.
        weights: (n,) at least 0; 1 if None.
        group_weight: what a group counts: the weight of its rows, of its positives, or 1.
    """
    score, label, weight = checked_rows(scores, labels, weights)
    group = checked_ids(groups, weights, score.size)
    top, bottom = grouped_auc_sums(score, label, weight, group, group_weight)
    return float(ratio(top, bottom))


def grouped_auc_sums(
    scores: Floats, labels: Floats, weights: Floats, groups: Ints, group_weight: GroupWeight
) -> tuple[float, float]:
    """Numerator and denominator of GAUC; both add up over sets of whole groups."""
    order = np.lexsort((scores, groups))
    starts = run_starts(groups[order])
    segment = np.repeat(np.arange(starts.size), np.diff(starts, append=scores.size))
    sums = pair_sums(segment, scores[order], labels[order], weights[order], starts.size)
    positive, negative = sums[:, POSITIVE], sums[:, NEGATIVE]
    if group_weight == "impressions":
        share = positive + negative
    else:
        share = positive if group_weight == "clicks" else np.ones_like(positive)
    # A NaN score makes the result NaN even in a group that would not count.
    counted = ((positive > 0) & (negative > 0)) | np.isnan(sums[:, CONCORDANT])
    value = ratio(sums[:, CONCORDANT], positive * negative)
    return float((share * value)[counted].sum()), float(share[counted].sum())


def log_loss(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Weighted mean cross-entropy in nats, from logits."""
    logit, label, weight = checked_rows(logits, labels, weights)
    return float(ratio((weight * row_log_loss(logit, label)).sum(), weight.sum()))


def label_entropy(rate: ArrayLike) -> Floats:
    """Entropy in nats of a label that is 1 at the given rate; 0 at rates 0 and 1."""
    p = np.asarray(rate, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return np.where((p == 0) | (p == 1), 0.0, entropy)


def normalized_entropy(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Log loss over the entropy of the base rate; a constant at the base rate has 1."""
    _, label, weight = checked_rows(logits, labels, weights)
    entropy = label_entropy(ratio((weight * label).sum(), weight.sum()))
    return float(ratio(log_loss(logits, labels, weights), entropy))


def relative_information_gain(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """1 - NE: the share of the label's entropy that the model explains."""
    return 1.0 - normalized_entropy(logits, labels, weights)


def pcoc(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Predicted over observed positives; above 1 the model promises too much."""
    p, label, weight = checked_rows(probabilities, labels, weights)
    return float(ratio((weight * p).sum(), (weight * label).sum()))
