"""Gates: how much of each expert a task listens to.

Notation: B batch, M experts, T tasks, H width of an expert's output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prismrec.models.layers import LayerNorm, Linear, widened


class SoftmaxGate(nn.Module):
    """A distribution over experts for each row and task, `softmax(W c + b)`.

    The context c holds `LayerNorm(P_m x_m)` of every set m, x_m its flattened field vectors, so
    that a wide or large set does not speak louder than another. W and b start at 0: training
    begins at the plain mean of the experts. The softmax is taken in float32 at least. Source: Ma
    et al., Modeling Task Relationships with Multi-gate Mixture-of-Experts, KDD 2018, eq. 6; the
    context is our choice.

    Args:
        inputs: for each stack of sets, their number (None for one set without a leading axis) and
            the length of their flattened field vectors.
        num_experts: M.
        num_tasks: T.
        context_dim: length of each set's part of the context.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[int | None, int]],
        num_experts: int,
        num_tasks: int,
        context_dim: int = 64,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.projections = nn.ModuleList(
            nn.Sequential(
                Linear(width, context_dim, copies, bias=False), LayerNorm(context_dim, copies)
            )
            for copies, width in inputs
        )
        context = context_dim * sum(1 if copies is None else copies for copies, _ in inputs)
        self.scores = Linear(context, num_tasks * num_experts, init="zero")

    def forward(self, flat_sets: Sequence[Tensor]) -> Tensor:
        """Map the stacks of flattened sets, ([M,] B, width) each, to gates (B, T, M)."""
        parts = []
        for projection, x in zip(self.projections, flat_sets, strict=True):
            part = projection(x)
            parts.append(part if part.dim() == 2 else part.transpose(0, 1).flatten(1))
        scores = widened(self.scores(torch.cat(parts, -1)))
        return torch.softmax(scores.unflatten(-1, (-1, self.num_experts)), -1)


def mix(experts: Tensor, gates: Tensor) -> Tensor:
    """The experts' outputs weighted by the gates, `Z_bt = sum_m G_btm E_mb`.

    Args:
        experts: E (M, B, H).
        gates: G (B, T, M).

    Returns:
        Z (B, T, H).
    """
    return torch.einsum("btm,mbh->bth", gates, experts)
