"""What a task is trained towards: a loss of every row, and where asked one of the whole batch.

Notation: B rows of this rank, T tasks, J of them with a level, z logits, p = sigmoid(z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.models.objectives.delayed import Reweigh
from prismrec.models.objectives.ranking import (
    Reduction,
    Rows,
    generative_loss,
    list_loss,
    pair_loss,
    rcr_loss,
)

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, t) and labels (B, t) in [0, 1] to losses (B, t): every row and task by itself."""


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each row in nats; any shape."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


@dataclass(frozen=True, slots=True)
class Focal:
    """`-y a (1 - p)^g log p - (1 - y) (1 - a) p^g log(1 - p)`.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 5. It takes gradient from
    negatives of low probability, the opposite of what pairs do.

    Args:
        gamma: g, at least 0.
        alpha: a in (0, 1); None gives both labels the weight 1.
    """

    gamma: float
    alpha: float | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row; any shape."""
        right, wrong = F.logsigmoid(logits), F.logsigmoid(-logits)
        positive, negative = (1.0, 1.0) if self.alpha is None else (self.alpha, 1 - self.alpha)
        of_positive = positive * torch.exp(self.gamma * wrong) * right
        of_negative = negative * torch.exp(self.gamma * right) * wrong
        return -(labels * of_positive + (1 - labels) * of_negative)


class BatchLoss(Protocol):
    """A loss of one task's rows of the whole batch, such as that of their pairs."""

    @property
    def name(self) -> str:
        """What it is called where it is logged."""

    def __call__(self, own: Rows, every: Rows) -> Tensor:
        """A scalar whose mean over the ranks is the loss of the global batch, and so its gradient.

        Collective: every rank calls it.

        Args:
            own: this rank's rows, to differentiate.
            every: the rows of all ranks.
        """


@dataclass(frozen=True, slots=True)
class RankNet:
    """Pairs of a positive and a negative; see `pair_loss`."""

    reduction: Reduction = "pair_mean"
    is_weighted: bool = True
    name: str = "ranknet"

    def __call__(self, own: Rows, every: Rows) -> Tensor:
        """The mean over pairs."""
        return pair_loss(own, self.reduction, is_weighted=self.is_weighted, every=every)


@dataclass(frozen=True, slots=True)
class ListNet:
    """Softmax over the batch; see `list_loss`."""

    name: str = "list"

    def __call__(self, own: Rows, every: Rows) -> Tensor:
        """The mean over positives."""
        return list_loss(own, every)


@dataclass(frozen=True, slots=True)
class Rcr:
    """Regression-compatible list loss; see `rcr_loss`."""

    name: str = "rcr"

    def __call__(self, own: Rows, every: Rows) -> Tensor:
        """The mean over positives."""
        return rcr_loss(own, every)


@dataclass(frozen=True, slots=True)
class Generative:
    """The generative part of JRC; see `generative_loss`."""

    excludes_same_label: bool = False
    name: str = "generative"

    def __call__(self, own: Rows, every: Rows) -> Tensor:
        """The mean over rows."""
        return generative_loss(own, every, excludes_same_label=self.excludes_same_label)


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """`alpha * mean of row losses + (1 - alpha) * loss of the batch`.

    Args:
        row: loss of every row by itself.
        of_batch: loss of the batch; None leaves the first part alone, whatever `alpha`.
        alpha: share of the first part, 0 to 1.
        is_grouped: `of_batch` compares rows of one group only.
        has_level: `of_batch` needs the task's level.
        pos_weight: factor on the weights of positives.
        propensity: rows whose weights are multiplied by `Targets.propensity`.
        reweigh: what the losses of rows are multiplied by, where conversions come late.
    """

    row: RowLoss = binary_cross_entropy
    of_batch: BatchLoss | None = None
    alpha: float = 1.0
    is_grouped: bool = False
    has_level: bool = False
    pos_weight: float = 1.0
    propensity: Literal["none", "positives", "both"] = "none"
    reweigh: Reweigh | None = None
