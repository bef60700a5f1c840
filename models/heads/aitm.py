"""AITM: tasks in a row, each told by the one before it as much as it attends to.

Notation: B batch, T tasks, d width of a task's vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.collectives import sum_over_ranks
from prismrec.models.domains import build_towers
from prismrec.models.heads.flat import FlatSets
from prismrec.models.inputs import Fields, Inputs
from prismrec.models.layers import Linear, MLPSpec, widened
from prismrec.models.mixture import FirstOrder

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """The loss on probabilities that grow along the tasks.

    Args:
        weight: its factor; 0 for none.
        reduction: "sum" over the rows of all ranks, "mean" over them.
    """

    weight: float = 0.6
    reduction: Reduction = "sum"


@dataclass(frozen=True, slots=True)
class AitmOptions:
    """How tasks hear of each other.

    Args:
        transfer: "per_task" has maps h1, h2, h3 for each task, "shared" the same for all.
        calibrator: see `Calibrator`.
    """

    transfer: Literal["per_task", "shared"] = "per_task"
    calibrator: Calibrator = Calibrator()


def calibrator_loss(logits: Tensor, counted: Tensor | None, reduction: Reduction) -> Tensor:
    """`sum_b sum_t max(p_bt - p_b(t-1), 0)`, or its mean over the rows; p are probabilities.

    Its mean over the ranks is its value on the global batch.

    Collective: every rank, for the mean. Source: Xi et al., Modeling the Sequential Dependence among Audience
    Multi-step Conversions, KDD 2021, eq. 7; the mean is our choice.

    Args:
        logits: (B, T).
        counted: (B,), 1 for rows that count, 0 for others; None if all do.
        reduction: see above.
    """
    p = torch.sigmoid(widened(logits))
    excess = F.relu(p[:, 1:] - p[:, :-1]).sum(1)
    rows = torch.ones_like(excess) if counted is None else counted.to(excess.dtype)
    has_ranks = dist.is_available() and dist.is_initialized()
    loss = (excess * rows).sum() * (dist.get_world_size() if has_ranks else 1)
    if reduction == "sum":
        return loss
    return loss / sum_over_ranks(rows.sum().detach()).clamp_min(1)


class Transfer(nn.Module):
    """Attention over what the task before tells and what the task itself knows.

    `a_u = softmax_u(<h2(u), h3(u)> / sqrt(d))` over u in {p, q} and `z = sum_u a_u h1(u)`, the
    softmax in float32 at least. Source: as above, eq. 3 to 5.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = Linear(width, width, bias=False)
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)

    def forward(self, told: Tensor, own: Tensor) -> Tensor:
        """Map p and q, (B, d) each, to z (B, d)."""
        u = torch.stack([told, own], 1)
        scores = (widened(self.query(u)) * widened(self.key(u))).sum(-1) / math.sqrt(u.shape[-1])
        weights = torch.softmax(scores, 1)
        return (weights.unsqueeze(-1) * self.value(u)).sum(1)


class Aitm(nn.Module):
    """A bottom for each task, and from the second one on what the task before it tells.

    `z_1 = q_1`, `z_t = transfer_t(g_t(z_(t-1)), q_t)` with q_t = bottom_t(x) and g_t a linear map,
    ReLU and dropout; a tower turns z_t into the logit. Source: as above; that g has a ReLU and that
    towers may be deeper than one map is our choice.

    Args:
        fields: shapes of the inputs; where it counts domains, each has towers of its own.
        bottom: layers of each bottom, at least one.
        tower: layers of each tower.
        options: see `AitmOptions`.

    Raises:
        ValueError: the bottoms have no layer.
    """

    def __init__(
        self, fields: Fields, bottom: MLPSpec, tower: MLPSpec, options: AitmOptions
    ) -> None:
        super().__init__()
        if not bottom.hidden:
            raise ValueError("the bottoms of AITM need a layer: their vectors are of one width")
        tasks = fields.num_tasks
        self.calibrator = options.calibrator
        self.flat = FlatSets(fields, range(len(fields.set_dims)))
        self.bottoms = bottom.build(self.flat.out_dim, None if tasks == 1 else tasks)
        width = self.bottoms.out_dim
        self.tell = nn.ModuleList(Linear(width, width) for _ in range(tasks - 1))
        shared = options.transfer == "shared"
        self.transfers = nn.ModuleList(
            Transfer(width) for _ in range(min(tasks - 1, 1) if shared else tasks - 1)
        )
        self.dropout = nn.Dropout(bottom.dropout)
        self.towers = build_towers(width, tower, tasks, fields.num_domains)
        self.bias = FirstOrder(0, tasks)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T) and, in training, the calibrator's loss."""
        own = self.bottoms(self.flat(inputs))
        vectors = [own] if own.dim() == 2 else list(own.unbind())
        for step, tell in enumerate(self.tell, 1):
            told = self.dropout(F.relu(tell(vectors[step - 1])))
            transfer = self.transfers[min(step, len(self.transfers)) - 1]
            vectors[step] = transfer(told, vectors[step])
        logits = self.towers(torch.stack(vectors, 1), inputs) + self.bias(None, inputs.dense)
        if not self.training or not self.calibrator.weight or len(vectors) == 1:
            return logits, {}
        loss = calibrator_loss(logits, inputs.counted, self.calibrator.reduction)
        return logits, {"calibrator": self.calibrator.weight * loss}
