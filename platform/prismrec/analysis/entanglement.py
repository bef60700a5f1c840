"""Interest entanglement: whether the vectors of two fields tell apart what two tasks mean by near.

A user may be near an item in the vectors of a model of task A alone, and far from it in those of a
model of task B alone. Vectors that serve both tasks have to put such a contradictory pair somewhere in
between, and say neither; a set of a task's own need not.

Source: Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024,
for the pairs; Lin et al., "Crocodile: Cross Experts Covariance for Disentangled Learning in
Multi-Domain Recommendation", 2024, for the name of the Diversity Index, whose formula here is ours.

Notation: n pairs, d width of a set, delta the distance of the two vectors of a pair in a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from prismrec.train.metrics.arrays import Floats, Ints, mix64
from prismrec.train.metrics.functions import auc

NUM_BINS = 50
"""Bins of a histogram of distances."""
SHARE = 0.4
"""Share of the pairs that count as far, and as near."""
MOST_PAIRS = 1_000_000
"""Pairs that are kept of a stream."""

_MOST_ROWS = 2**31
_PENDING = 2**18

Metric = Literal["euclidean", "cosine"]
Mask = NDArray[np.bool_]


def distances(first: Tensor, second: Tensor, metric: Metric = "euclidean") -> Tensor:
    """(n,) float64 distances of the vectors of pairs.

    The paper says "embedding distance" and no more; that it is the Euclidean one is our reading.

    Args:
        first: (n, d) vectors of one field.
        second: (n, d) those of the other.
        metric: "euclidean", or "cosine" for 1 - cos, which is 1 where a vector is zero.

    Raises:
        ValueError: the vectors are not equally wide and many.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"the vectors of a pair must be equally wide, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    one, other = first.detach().double(), second.detach().double()
    if metric == "euclidean":
        return (one - other).norm(dim=1)
    norms = one.norm(dim=1) * other.norm(dim=1)
    cosines = (one * other).sum(1) / norms.where(norms > 0, 1.0)
    return 1 - cosines


def lengths(first: Tensor, second: Tensor) -> Tensor:
    """(n,) float64 `sqrt(|u|^2 + |v|^2)`, what the Euclidean distances were if all angles were right ones.

    The other part of `|u - v|^2` is `-2 |u| |v| cos`. Held beside the distances this says whether they speak
    of which way vectors point, or only of how long training has made them. It is our own look.

    Args:
        first: u (n, d).
        second: v (n, d).
    """
    one, other = first.detach().double(), second.detach().double()
    return (one.square().sum(1) + other.square().sum(1)).sqrt()


@dataclass(frozen=True, slots=True)
class Contradictions:
    """Pairs that two tasks see differently, as masks (n,).

    Args:
        far_in_first: C_AB, far by A's distances and near by B's.
        far_in_second: C_BA, the other way round.
    """

    far_in_first: Mask
    far_in_second: Mask


def contradictory_pairs(first: Floats, second: Floats, share: float = SHARE) -> Contradictions:
    """The pairs among the k farthest of one task and the k nearest of the other, k = floor(share n).

    Among equal distances the earlier pair is the nearer.

    Args:
        first: (n,) distances of the pairs in A's vectors.
        second: (n,) the same in B's.
        share: at most 1/2.
    """
    near_in_first, far_in_first = _ends(first, share)
    near_in_second, far_in_second = _ends(second, share)
    return Contradictions(far_in_first & near_in_second, far_in_second & near_in_first)


def diversity_index(of_sets: Sequence[Floats], share: float = SHARE) -> float:
    """How much sets differ in which pairs they put far and near: 0 (not at all) to `share`.

    The mean, over ordered pairs of sets p and q, of the share of pairs that are among the floor(share n)
    farthest in p and the nearest in q. Sets whose orders have nothing to do with each other come to
    share^2. The Crocodile paper builds an index of that name on contradictory pairs; we could not read
    its formula, and this definition is ours.

    Args:
        of_sets: (n,) distances of the same pairs in each of two sets or more.
        share: at most 1/2.

    Raises:
        ValueError: there are fewer than two sets.
    """
    if len(of_sets) < 2:
        raise ValueError(f"a Diversity Index compares two sets or more, got {len(of_sets)}")
    ends = [_ends(each, share) for each in of_sets]
    shares = [float((far & near).mean()) for (_, far), (near, _) in permutations(ends, 2)]
    return sum(shares) / len(shares)


@dataclass(frozen=True, slots=True)
class Contrast:
    """How the distances of two groups of pairs lie to each other in one set.

    Args:
        means: of the first group and the second.
        medians: likewise.
        wasserstein: area between their distribution functions, in units of the distances.
        separation: chance that a pair of the first group is farther than one of the second, equal ones
            counting one half. 1/2: the set does not tell the groups apart.
    """

    means: tuple[float, float]
    medians: tuple[float, float]
    wasserstein: float
    separation: float


def contrast(of_set: Floats, pairs: Contradictions) -> Contrast:
    """What a set makes of contradictory pairs; NaN where there is no pair of one kind.

    In A's own vectors the separation is 1 and in B's 0: that is how the pairs were chosen.

    Args:
        of_set: (n,) distances of all pairs in the set.
        pairs: which of them the tasks see differently.
    """
    first, second = of_set[pairs.far_in_first], of_set[pairs.far_in_second]
    if not len(first) or not len(second):
        return Contrast((np.nan, np.nan), (np.nan, np.nan), np.nan, np.nan)
    is_first = np.repeat([1.0, 0.0], [len(first), len(second)])
    return Contrast(
        (float(first.mean()), float(second.mean())),
        (float(np.median(first)), float(np.median(second))),
        float(wasserstein_distance(first, second)),
        auc(np.concatenate([first, second]), is_first),
    )


def in_medians(of_set: Floats) -> Floats:
    """Distances in units of their median, so that sets can be compared; a median of 0 leaves them."""
    median = float(np.median(of_set))
    return of_set / median if median > 0 else of_set


def shared_edges(groups: Sequence[Floats], bins: int = NUM_BINS) -> Floats:
    """(bins + 1,) edges of equal bins from the least to the greatest distance of all groups."""
    everything = np.concatenate(groups) if groups else np.zeros(0)
    return np.histogram_bin_edges(everything, bins)


def shares_of(group: Floats, edges: Floats) -> Floats:
    """The share of a group's distances in each bin; zeros of an empty group."""
    return np.histogram(group, edges)[0] / max(1, len(group))


class PairSample:
    """Distinct pairs of the rows that a stream looks up, with where each was met first.

    Of more pairs than are kept those with the smallest hashes stay: a uniform sample of the distinct
    pairs that depends on neither their order nor how often they come. Memory is that of about `most`
    pairs and a buffer of 2^18 rows.

    Args:
        most: pairs that are kept.
    """

    def __init__(self, most: int = MOST_PAIRS) -> None:
        self._most = most
        self._keys, self._places = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._pending: list[Ints] = []
        self._waiting = self._seen = 0

    def update(self, first: Ints, second: Ints) -> None:
        """Add the next rows of the stream.

        Args:
            first: (B,) row of one field's table.
            second: (B,) row of the other's.

        Raises:
            ValueError: a table has 2^31 rows or more.
        """
        largest = max(first.max(initial=0), second.max(initial=0))
        if largest >= _MOST_ROWS:
            raise ValueError(f"pairs hold rows below 2^31, got {largest}")
        self._pending.append((first << 32) | second)
        self._waiting += len(first)
        if self._waiting >= _PENDING:
            self._compact()

    def places(self) -> Ints:
        """(n,) positions in the stream, ascending, at which the kept pairs were met first."""
        self._compact()
        return np.sort(self._places)

    def _compact(self) -> None:
        fresh = np.concatenate([*self._pending, np.zeros(0, np.int64)])
        keys = np.concatenate([self._keys, fresh])
        places = np.concatenate([self._places, self._seen + np.arange(len(fresh))])
        keys, at = np.unique(keys, return_index=True)  # of equal keys the first one
        places = places[at]
        if len(keys) > self._most:
            kept = np.argpartition(mix64(keys), self._most)[: self._most]
            keys, places = keys[kept], places[kept]
        self._keys, self._places = keys, places
        self._seen += len(fresh)
        self._pending, self._waiting = [], 0


def _ends(of_set: Floats, share: float) -> tuple[Mask, Mask]:
    """Masks of the floor(share n) nearest and farthest pairs."""
    count = int(share * len(of_set) + 1e-9)
    order = np.argsort(of_set, kind="stable")
    near, far = np.zeros((2, len(of_set)), bool)
    near[order[:count]] = True
    far[order[len(order) - count :]] = True
    return near, far
