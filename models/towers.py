"""Towers: from what the experts found to one logit per task.

Notation: B batch, T tasks, H width of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.models.inputs import Inputs
from prismrec.models.layers import Linear, MLPSpec, widened


class SharedTower(nn.Module):
    """Layers that all tasks share, then a weight vector per task: (B, H) to logits (B, T).

    Args:
        in_features: H.
        mlp: the shared layers.
        num_tasks: T.
    """

    def __init__(self, in_features: int, mlp: MLPSpec, num_tasks: int) -> None:
        super().__init__()
        self.body = mlp.build(in_features)
        self.head = Linear(self.body.out_dim, num_tasks, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, H) to (B, T)."""
        return _full_precision(self.head, self.body(h))


class TaskTowers(nn.Module):
    """A tower for each task, of equal shape and run as one: (B, T, H) to logits (B, T).

    Args:
        in_features: H.
        mlp: the layers of each tower.
        num_tasks: T.
    """

    def __init__(self, in_features: int, mlp: MLPSpec, num_tasks: int) -> None:
        super().__init__()
        self.copies = None if num_tasks == 1 else num_tasks
        self.body = mlp.build(in_features, self.copies)
        self.head = Linear(self.body.out_dim, 1, self.copies, bias=False)

    def forward(self, h: Tensor, inputs: Inputs) -> Tensor:
        """Logits (B, T).

        Args:
            h: (B, T, H), or (B, 1, H) for one vector that all tasks read.
            inputs: what the model was given; these towers need none of it.
        """
        if self.copies is None:
            return _full_precision(self.head, self.body(h.squeeze(1)))
        if h.shape[1] == 1:
            h = (
                self.body(h.squeeze(1))
                if len(self.body.linears)
                else h.transpose(0, 1).expand(self.copies, -1, -1)
            )
        else:
            h = self.body(h.transpose(0, 1))
        return _full_precision(self.head, h).squeeze(-1).mT


class SumHead(nn.Module):
    """The sum of a vector as a logit, as an FM takes it: (B, H) to logits (B, T).

    With several tasks each weighs the columns by itself, from weights of 1.

    Args:
        in_features: H.
        num_tasks: T.
    """

    weight: nn.Parameter | None

    def __init__(self, in_features: int, num_tasks: int) -> None:
        super().__init__()
        several = num_tasks > 1
        self.weight = nn.Parameter(torch.empty(num_tasks, in_features)) if several else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of 1."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, H) to (B, T)."""
        h = widened(h)
        if self.weight is None:
            return h.sum(-1, keepdim=True)
        return (h.unsqueeze(1) * self.weight).sum(-1)


def _full_precision(head: Linear, h: Tensor) -> Tensor:
    """The head outside autocast: logits rounded to bfloat16 would tie, and AUC would lose."""
    if not torch.is_autocast_enabled(h.device.type):
        return head(h)
    with torch.autocast(h.device.type, enabled=False):
        return head(widened(h))
