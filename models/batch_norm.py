"""Batch normalisation whose moments are those of the global batch, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks


class BatchNorm(nn.Module):
    """Batch normalisation per column, and per copy where there are copies.

    In training the moments are those of all ranks' rows together, so the result does not depend
    on the number of ranks; padding rows count. In evaluation the running moments stand in. The
    arithmetic is float32 at least, the output has the input's type.

    Collective: in training every rank must run it, forward and backward, with the same number of
    rows. Nothing is sent in evaluation, or when no process group is initialised.

    Args:
        width: number of columns.
        copies: number M of stacked inputs, or None.
        eps: added to the variance.
        momentum: weight in (0, 1] of the newest batch in the running moments.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, width: int, copies: int | None = None, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.copies = copies
        self.eps = eps
        self.momentum = momentum
        shape = (width,) if copies is None else (copies, width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        self.register_buffer("running_mean", torch.empty(shape))
        self.register_buffer("running_var", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1, shift 0, running mean 0, running variance 1."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ([M,] B, width) over the rows."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training:
            mean, variance = self._global_moments(wide)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed = torch.addcmul(_row(self.bias), wide - _row(mean), _row(scale))
        return normed.to(x.dtype)

    def _global_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over all ranks' rows; the running moments move along."""
        # Squares around the running mean lose less to cancellation than squares around 0.
        offset = self.running_mean.clone()
        centred = x - _row(offset)
        sums = torch.stack([centred.sum(-2), centred.square().sum(-2)])
        rows = x.shape[-2]
        if dist.is_available() and dist.is_initialized():
            rows *= dist.get_world_size()
        sums = sum_over_ranks(sums)
        shift, square = (sums / rows).unbind()
        variance = (square - shift.square()).clamp_min(0)
        mean = offset + shift
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (rows / max(rows - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance


def _row(x: Tensor) -> Tensor:
    return x.unsqueeze(-2)
