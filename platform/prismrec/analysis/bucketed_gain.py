"""What a model of several tasks gains over one of a task alone, by which of two tasks users lean to.

Users whose positives are all of one task teach shared vectors another thing than those with as many of
both. Where tasks are entangled a shared model gains on some users and loses on others, and its mean says
nothing of it.

Source: Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, whose
figure of comparable samples has users by that ratio; ten buckets of equally many users is our reading.

Notation: n rows, A and B the two tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prismrec.train.metrics.arrays import Floats, Ints
from prismrec.train.metrics.functions import auc

NUM_BUCKETS = 10


@dataclass(frozen=True, slots=True)
class Leaning:
    """Rows by the share of A among the positives of their user.

    Args:
        buckets: (n,) bucket of each row, 0 to `NUM_BUCKETS` - 1; -1 where its user has no positive.
        ratios: (NUM_BUCKETS,) mean over a bucket's users of the share; NaN of an empty bucket.
        users: (NUM_BUCKETS,) users of each.
    """

    buckets: Ints
    ratios: Floats
    users: Ints


def leaning(users: Ints, first: Floats, second: Floats) -> Leaning:
    """Sort users into tenths by #pos_A / (#pos_A + #pos_B).

    Users of one ratio stay together, in the tenth that the middle of them belongs to, so that tenths may
    be unequal or empty.

    Args:
        users: (n,) any integer that tells users apart.
        first: (n,) labels of A, NaN where there is none.
        second: (n,) labels of B.
    """
    names, user = np.unique(users, return_inverse=True)
    of_first = np.bincount(user, first > 0.5, len(names))
    of_both = of_first + np.bincount(user, second > 0.5, len(names))
    counted = of_both > 0
    share = np.divide(of_first, of_both, out=np.full(len(names), np.nan), where=counted)
    values, at, counts = np.unique(share[counted], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    tenth = (NUM_BUCKETS * middle / max(1, counts.sum())).astype(np.int64)
    bucket = np.full(len(names), -1)
    bucket[counted] = tenth[at]
    sizes = np.bincount(tenth, counts, NUM_BUCKETS)
    sums = np.bincount(tenth, counts * values, NUM_BUCKETS)
    ratios = np.divide(sums, sizes, out=np.full(NUM_BUCKETS, np.nan), where=sizes > 0)
    return Leaning(bucket[user], ratios, sizes.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Gain:
    """AUC on the rows of a bucket.

    Args:
        bucket: which.
        rows: rows with a label.
        positives: those of them whose label is 1.
        model: AUC of the model of several tasks; NaN where all labels are one.
        alone: that of the single-task model.
    """

    bucket: int
    rows: int
    positives: int
    model: float
    alone: float

    @property
    def gain(self) -> float:
        """How much more the model of several tasks has."""
        return self.model - self.alone


def bucketed_gain(buckets: Ints, labels: Floats, model: Floats, alone: Floats) -> Sequence[Gain]:
    """AUC of two models of one task in every bucket that has rows.

    Args:
        buckets: (n,) of each row, -1 for rows that are left out.
        labels: (n,) of the task, NaN where there is none.
        model: (n,) scores of the model of several tasks.
        alone: (n,) scores of the single-task model.
    """
    found = []
    for bucket in range(NUM_BUCKETS):
        rows = (buckets == bucket) & ~np.isnan(labels)
        if rows.any():
            y = labels[rows]
            scores = (auc(model[rows], y), auc(alone[rows], y))
            found.append(Gain(bucket, int(rows.sum()), int((y > 0.5).sum()), *scores))
    return found
