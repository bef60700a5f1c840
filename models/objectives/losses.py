"""Losses whose mean is exact over the global batch.

Notation: B rows of this rank, T tasks, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.config.external import import_function

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, t) and labels (B, t) in [0, 1] to losses (B, t): every row and task by itself."""


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each row in nats; any shape."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def global_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean per task over the rows of all ranks, times the number of ranks.

    `L_t = W sum_b w_bt l_bt / sum over ranks and b of w_bt`. Gradients are averaged over ranks
    afterwards, which cancels W; the mean of a rank-wise mean would be biased wherever ranks hold
    different numbers of valid rows. A task without a valid row anywhere has loss 0 and gradient 0.

    Collective: every rank, once; nothing is sent when no process group is initialised.

    Args:
        losses: l (B, T).
        weights: w (B, T), at least 0; 0 where the row does not count.

    Returns:
        (T,); its mean over the ranks is the loss of the global batch.
    """
    counts = weights.sum(0).detach()
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size()
        dist.all_reduce(counts)
    scale = world_size / torch.where(counts > 0, counts, 1)
    return (losses * weights).sum(0) * scale


class Objective(nn.Module):
    """A loss per row and task, averaged over the global batch, tasks added up by weight.

    Args:
        losses: the loss of each task; equal neighbours are computed together.
        task_weights: lambda of each task, at least 0.
    """

    task_weights: Tensor

    def __init__(self, losses: Sequence[RowLoss], task_weights: Sequence[float]) -> None:
        super().__init__()
        runs = groupby(enumerate(losses), key=lambda pair: pair[1])
        self._runs = [(loss, [task for task, _ in run]) for loss, run in runs]
        weights = torch.tensor(task_weights, dtype=torch.float32)
        self.register_buffer("task_weights", weights, persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, valid: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scalar to differentiate, and the losses per task (T,) without a gradient.

        The mean of either over the ranks is its value on the global batch. Computed in float32.

        Collective: every rank calls it, once per step.

        Args:
            logits: z (B, T).
            labels: y (B, T) in [0, 1]; whatever stands where `valid` is 0 is ignored.
            valid: v (B, T) in {0, 1}.
            weights: w (B, T), at least 0.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # A weight of 0 does not silence a NaN label: 0 * NaN is NaN.
        labels = torch.where(valid > 0, labels, 0).to(logits.dtype)
        parts = [
            loss(logits[:, tasks[0] : tasks[-1] + 1], labels[:, tasks[0] : tasks[-1] + 1])
            for loss, tasks in self._runs
        ]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        per_task = global_mean(losses, (valid * weights).to(logits.dtype))
        return (per_task * self.task_weights).sum(), per_task.detach()


def row_loss(key: str, name: str) -> RowLoss:
    """The loss that a recipe names: `bce`, or `package.module:function` of another package.

    Raises:
        UserError: there is no such loss.
    """
    if name == "bce":
        return binary_cross_entropy
    return import_function(key, name)
