"""From the losses of rows to one loss per task, exact over the rows of all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

DomainReduction = Literal["global_mean", "per_domain_mean", "tempered"]


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


@dataclass(frozen=True, slots=True)
class DomainMeans:
    """The mean of each domain over the rows of all ranks, and how the domains add up.

    With N_s the weight of a domain's rows in the step, `per_domain_mean` is `sum_s mean_s`, as
    Crocodile has it, and a domain without a row adds nothing; `tempered` is `sum_s N_s^tau mean_s /
    sum_s N_s^tau`: the global mean for tau = 1, equal domains for tau = 0.

    Args:
        num_domains: S.
        temperature: tau in [0, 1]; None for `per_domain_mean`.
    """

    num_domains: int
    temperature: float | None = None

    def __call__(self, losses: Tensor, weights: Tensor, domain: Tensor) -> Tensor:
        """One loss per task, times the number of ranks; see `global_mean`.

        Collective: every rank, once; nothing is sent when no process group is initialised.

        Args:
            losses: l (B, T).
            weights: w (B, T), at least 0; 0 where the row does not count.
            domain: (B,) int64, 0 to S - 1.

        Returns:
            (T,); its mean over the ranks is the loss of the global batch.
        """
        weights = weights.detach()
        counts = F.one_hot(domain, self.num_domains).to(weights.dtype).mT @ weights
        world_size = 1
        if dist.is_available() and dist.is_initialized():
            world_size = dist.get_world_size()
            dist.all_reduce(counts)
        scale = world_size * (counts > 0) / torch.where(counts > 0, counts, 1)
        if self.temperature is not None:
            share = torch.where(counts > 0, counts**self.temperature, 0)
            total = share.sum(0)
            scale = scale * share / torch.where(total > 0, total, 1)
        return (losses * weights * scale[domain]).sum(0)
