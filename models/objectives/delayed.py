"""Losses of conversions that come late: rows weighted so that the best score is the true probability.

A stream that waits for no conversion shows negatives that turn positive later (docs/online.md). Each method
here belongs to a rule of when rows are emitted (`prismrec.data.delayed`) and puts right what that does to
the share of positives.

Notation: B rows, T tasks, z logits, f = sigmoid(z), p the probability of a conversion, r the probability
that it comes after the waiting window, given that it comes, p_dp = p r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_LEAST = 1e-6
"""How far a probability that is worked back stays from 1."""


class Importance(NamedTuple):
    """Factors on the losses of positives and of negatives, (B,) each, float64, without a gradient."""

    positive: Tensor
    negative: Tensor


class Reweigh(Protocol):
    """What the rows of a task count for, by what the model says of them now."""

    def __call__(self, logits: Tensor, task: int) -> Importance:
        """The factors of both labels.

        Args:
            logits: z (B, T) of all tasks.
            task: which one is weighted.
        """


@dataclass(frozen=True, slots=True)
class FakeNegativeWeighted:
    """FNW: `1 + f` on positives, `(1 - f)(1 + f)` on negatives.

    For rows that are emitted at once as negatives, and again as positives when they convert.
    Ktena et al., "Addressing Delayed Feedback for Continuous Training", RecSys 2019.
    """

    def __call__(self, logits: Tensor, task: int) -> Importance:
        """The factors of both labels."""
        f = _probability(logits, task)
        return Importance(1 + f, (1 - f) * (1 + f))


@dataclass(frozen=True, slots=True)
class ElapsedTime:
    """ES-DFM: `1 + p_dp` on positives, `(1 + p_dp) p_rn` on negatives.

    For rows that are emitted after a waiting window, and again as positives when they convert after
    it. Yang et al., "Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time
    Sampling", AAAI 2021.

    Args:
        late: task whose probability is p_dp, that a row converts after the window.
        real_negative: task whose probability is p_rn, that a row without a conversion in the window
            has none at all.
    """

    late: int
    real_negative: int

    def __call__(self, logits: Tensor, task: int) -> Importance:
        """The factors of both labels."""
        p_dp = _probability(logits, self.late)
        return Importance(1 + p_dp, (1 + p_dp) * _probability(logits, self.real_negative))


@dataclass(frozen=True, slots=True)
class RealNegatives:
    """DEFER: `1 / (1 - r/2)` on positives, `(1 - f) / (1 - f + f r/2)` on negatives.

    For rows that are emitted after a waiting window, and all of them once more with their final
    label. Gu et al., "Real Negatives Matter", KDD 2021, with p_dp written as f r, which keeps the weight
    of a positive between 1 and 2.

    Args:
        late: task whose probability is r, that a conversion comes after the window.
    """

    late: int

    def __call__(self, logits: Tensor, task: int) -> Importance:
        """The factors of both labels."""
        f, half = _probability(logits, task), _probability(logits, self.late) / 2
        return Importance(1 / (1 - half), (1 - f) / (1 - f + f * half))


def importance(rule: Reweigh, logits: Tensor, labels: Tensor, task: int) -> Tensor:
    """What each row's loss is multiplied by, (B,), without a gradient.

    Args:
        rule: how.
        logits: (B, T) of all tasks.
        labels: (B,) of the task.
        task: which one.
    """
    factors = rule(logits, task)
    return torch.where(labels > 0.5, factors.positive, factors.negative).to(logits.dtype)


def without_copies(logits: Tensor) -> Tensor:
    """FNC: from the logit of b, among rows of which positives are there twice, to that of p = b / (1 - b).

    b is held below 1/2, where p would be 1. Any shape.

    >>> q = torch.tensor([1 / 6]).double()
    >>> torch.sigmoid(without_copies(torch.logit(q))).round(decimals=6).tolist()
    [0.2]
    """
    z = logits.clamp(max=torch.log1p(torch.tensor(-_LEAST, dtype=torch.float64)).item())
    return z - torch.log(-torch.expm1(z))


def _probability(logits: Tensor, task: int) -> Tensor:
    return torch.sigmoid(logits[:, task].detach().double())
