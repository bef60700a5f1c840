"""Losses whose mean is exact over the global batch.

Notation: B rows of this rank, T tasks, W ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def global_mean_bce(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor,
    weights: Tensor,
    task_weights: Tensor,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, averaged per task over the valid rows of all ranks.

    `L_t = W sum_b v_bt w_bt l(z_bt, y_bt) / sum over ranks and b of v_bt w_bt`, and the total is
    `sum_t lambda_t L_t`. Gradients are averaged over ranks afterwards, which cancels W; the mean
    of a rank-wise mean would be biased wherever ranks hold different numbers of valid rows. A task
    without a valid row anywhere has loss 0 and gradient 0. Computed in float32 at least.

    Collective: every rank of `group`, once; nothing is sent when no process group is initialised.

    Args:
        logits: z (B, T).
        labels: y (B, T) in [0, 1]; whatever stands where `valid` is 0 is ignored.
        valid: v (B, T) in {0, 1}.
        weights: w (B, T), at least 0.
        task_weights: lambda (T,), at least 0.
        group: the ranks that share the batch; None for all of them.

    Returns:
        The scalar to differentiate, and the losses per task (T,) without a gradient. The mean of
        either over the ranks is its value on the global batch.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    effective = (valid * weights).to(logits.dtype)
    # A weight of 0 does not silence a NaN label: 0 * NaN is NaN.
    labels = torch.where(valid > 0, labels, 0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    counts = effective.sum(0).detach()
    world_size = 1
    if dist.is_available() and dist.is_initialized():
        world_size = dist.get_world_size(group)
        dist.all_reduce(counts, group=group)
    scale = world_size / torch.where(counts > 0, counts, 1)
    per_task = (losses * effective).sum(0) * scale
    return (per_task * task_weights).sum(), per_task.detach()
