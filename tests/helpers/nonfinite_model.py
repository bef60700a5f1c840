"""A model that gives no numbers where a batch holds one row, which its first numeric column marks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prismrec.models import Fields, Inputs
from prismrec.models.batch_norm import BatchNorm

MARK = 777.0


class _NoGradient(torch.autograd.Function):
    """A tensor as it is, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(grads[0], torch.nan)


class Marked(nn.Module):
    """A linear model; what it does with the marked row is its `kind`.

    Args:
        fields: what it reads.
        kind: `loss` gives NaN logits, `gradient` NaN gradients, `silent` logits without a gradient,
            `norm` NaN in front of a batch norm.
    """

    def __init__(self, fields: Fields, kind: str) -> None:
        super().__init__()
        self._kind = kind
        inputs = fields.set_fields[0] * fields.set_dims[0] + fields.num_dense
        self.layer = nn.Linear(inputs, fields.num_tasks)
        self.norm = BatchNorm(fields.num_dense) if kind == "norm" else None

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T)."""
        marked = inputs.dense[:, 0] == MARK
        dense = torch.where(inputs.dense == MARK, 0, inputs.dense)
        if self.norm is not None:
            bad = marked[:, None] & torch.tensor(self.training)
            dense = self.norm(torch.where(bad, torch.nan, dense))
        logits = self.layer(torch.cat([inputs.sets[0].flatten(1), dense], 1))
        if self.training and marked.any() and self.norm is None:
            if self._kind == "loss":
                logits = torch.where(marked[:, None], torch.nan, logits)
            elif self._kind == "gradient":
                logits = _NoGradient.apply(logits)
            else:
                logits = logits.detach() + 0 * logits
        return logits, {}


def build(fields: Fields, options: dict[str, Any]) -> nn.Module:
    """What a recipe names."""
    return Marked(fields, options["kind"])
