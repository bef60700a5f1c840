"""The objective of plain binary cross-entropy, as one call."""

from __future__ import annotations

from torch import Tensor

from prismrec.models.objectives import Objective, Targets, TaskLoss


def global_mean_bce(
    logits: Tensor, labels: Tensor, valid: Tensor, weights: Tensor, task_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Total and per-task loss of `Objective` with the same loss for every task."""
    objective = Objective([TaskLoss()] * len(task_weights), task_weights.tolist())
    total, losses = objective(logits, Targets(labels, valid, weights))
    return total, losses.per_task
