"""Batch normalisation whose moments are those of the global batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks


class BatchNorm(nn.Module):
    """Batch normalisation per column, and per copy where there are copies.

    In training the moments are those of all ranks' rows together, so the result does not depend
    on the number of ranks. Rows that do not count, such as padding, are left out: the last batch of
    an epoch may have more of those than others, just before an evaluation reads the running
    moments. In evaluation these stand in. The arithmetic is float32 at least, the output has the
    input's type.

    Collective: in training every rank must run it, forward and backward. Nothing is sent in
    evaluation, or when no process group is initialised.

    Args:
        width: number of columns.
        copies: number M of stacked inputs, or None.
        eps: added to the variance.
        momentum: weight in (0, 1] of the newest batch in the running moments.

    Attributes:
        counted: (B,), 1 for rows that count and 0 for others, set before each step; None if all do.
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
        self.counted: Tensor | None = None
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
        if self.counted is None:
            count = x.new_full((1,), x.shape[-2])
            sums = [centred.sum(-2), centred.square().sum(-2)]
        else:
            counted = self.counted.to(x.dtype).unsqueeze(-1)
            count = counted.sum(0)
            weighed = centred * counted
            sums = [weighed.sum(-2), (weighed * centred).sum(-2)]
        packed = sum_over_ranks(torch.cat([*(each.flatten() for each in sums), count]))
        rows = packed[-1].detach()
        means = packed[:-1] / rows.clamp_min(1)
        shift, square = means.view(2, *self.running_mean.shape).unbind()
        variance = (square - shift.square()).clamp_min(0)
        mean = offset + shift
        with torch.no_grad():
            step = self.momentum * (rows > 0).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
            unbiased = variance * (rows / (rows - 1).clamp_min(1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), step)
        return mean, variance


def _row(x: Tensor) -> Tensor:
    return x.unsqueeze(-2)
