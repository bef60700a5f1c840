"""From the losses of rows to one loss per task, exact over the rows of all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
