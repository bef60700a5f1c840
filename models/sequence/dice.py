"""Dice: a PReLU whose turning point follows the data.

Source: Deep Interest Network (arXiv:1706.06978), equation 10.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks
from prismrec.models.layers import stacked_shape, widened


class Dice(nn.Module):
    """`p x + a (1 - p) x`, p the logistic function of x by its moments, and a learned, 0 at the start.

    In training the moments are those of all ranks' values, which may be of unequal number on the
    ranks and none on some; in evaluation the running moments stand in. There is no padding among jagged
    values, so that none can enter the moments.

    Collective: in training every rank must run it, forward and backward. Nothing is sent in evaluation, or when
    no process group is initialised.

    Args:
        width: number of columns.
        copies: M, or None.
        eps: added to the variance.
        momentum: weight in (0, 1] of the newest batch in the running moments.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, width: int, copies: int | None = None, eps: float = 1e-9, momentum: float = 0.01
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        shape = stacked_shape(copies, width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_buffer("running_mean", torch.empty(shape))
        self.register_buffer("running_var", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slope 0, running mean 0, running variance 1."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Map ([M,] T, width) to the same."""
        wide = widened(x)
        if self.training:
            mean, variance = self._moments(wide)
        else:
            mean, variance = self.running_mean, self.running_var
        share = torch.sigmoid(
            (wide - mean.unsqueeze(-2)) * torch.rsqrt(variance + self.eps).unsqueeze(-2)
        )
        return (share * wide + self.weight.unsqueeze(-2) * (1 - share) * wide).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over all ranks' values; the running moments move along."""
        offset = self.running_mean.clone()
        centred = x - offset.unsqueeze(-2)
        counts = torch.full_like(offset, float(x.shape[-2]))
        sums = sum_over_ranks(torch.stack([centred.sum(-2), centred.square().sum(-2), counts]))
        count = sums[2].detach()
        shift, square = (sums[:2] / count.clamp(min=1)).unbind()
        variance, mean = (square - shift.square()).clamp_min(0), offset + shift
        with torch.no_grad():
            # A batch without any value teaches nothing.
            step = torch.where(count > 0, self.momentum, torch.zeros_like(count))
            self.running_mean += step * (mean - self.running_mean)
            self.running_var += step * (variance - self.running_var)
        return mean, variance
