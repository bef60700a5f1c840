"""Mutual information of two discrete things from how often they occur together, in nats.

Counts are the only thing that is kept of the rows: they add up over batches, and over ranks.

Notation: C classes of one thing, Y of the other, N rows.

Source: the plug-in estimate with the correction of Miller (1955).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Information:
    """What one thing says about another.

    Args:
        nats: the plug-in estimate, 0 to min(H(Y), log C). Too high on few rows.
        correction: what chance alone adds to it on average, (C - 1)(Y - 1) / 2N for the classes
            that occur.
        entropy: H(Y), all there is to know.
        rows: N.
        classes: C, those that occur.
        rarest: rows of the rarest of Y, of those that occur.
    """

    nats: float
    correction: float
    entropy: float
    rows: int
    classes: int
    rarest: int

    @property
    def is_reliable(self) -> bool:
        """Whether the rarest label comes once for each class at least; below, the estimate is noise."""
        return self.entropy > 0 and self.rarest >= self.classes

    @property
    def noise(self) -> float:
        """Standard deviation of the estimate where nothing is said, sqrt((C - 1)(Y - 1) / 2) / N."""
        return math.sqrt(self.correction / self.rows) if self.rows else 0.0

    @property
    def corrected(self) -> float:
        """The estimate less the correction; below 0 where there is less than chance brings on average."""
        return self.nats - self.correction

    @property
    def share(self) -> float:
        """The corrected estimate as a share of H(Y); 0 where there is nothing to know."""
        return self.corrected / self.entropy if self.entropy > 0 else 0.0


def information(counts: Tensor) -> Information:
    """What the rows of a table of counts (C, Y) say about its columns."""
    nats, correction = mutual_information(counts)
    of_labels = counts.sum(-2)
    return Information(
        nats=float(nats),
        correction=float(correction),
        entropy=float(entropy(of_labels)),
        rows=int(counts.sum()),
        classes=int((counts.sum(-1) > 0).sum()),
        rarest=int(of_labels[of_labels > 0].min()) if bool(of_labels.any()) else 0,
    )


def mutual_information(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The plug-in estimates and their corrections, float64, of many tables at once.

    `sum_cy n_cy / N log(n_cy N / (n_c n_y))`, and (C - 1)(Y - 1) / 2N for the C and Y that occur.

    Args:
        counts: n (..., C, Y), not negative; a table without rows has information 0.
    """
    n = counts.double()
    of_rows, of_columns = n.sum(-1), n.sum(-2)
    total = n.sum((-2, -1))
    nats = entropy(of_rows) + entropy(of_columns) - entropy(n.flatten(-2))
    free = [((each > 0).sum(-1) - 1).clamp(min=0) for each in (of_rows, of_columns)]
    correction = free[0] * free[1] / (2 * total.clamp(min=1))
    # a difference of equal entropies may round below 0
    return nats.clamp(min=0), correction


def entropy(counts: Tensor) -> Tensor:
    """(...) float64 entropies in nats of counts (..., C); 0 without rows."""
    n = counts.double()
    shares = n / n.sum(-1, keepdim=True).clamp(min=1)
    return -torch.xlogy(shares, shares).sum(-1)


def count_pairs(
    codes: Tensor, others: Tensor, num_codes: int, num_others: int, chosen: Tensor | None = None
) -> Tensor:
    """(C, Y) int64, how often each code comes with each other one.

    Args:
        codes: (B,) int64, 0 to C - 1.
        others: (B,) int64, 0 to Y - 1.
        num_codes: C.
        num_others: Y.
        chosen: (B,) bool, the rows that count; None for all.
    """
    joint = codes * num_others + others
    if chosen is not None:
        joint = joint[chosen]
    return torch.bincount(joint, minlength=num_codes * num_others).view(num_codes, num_others)
