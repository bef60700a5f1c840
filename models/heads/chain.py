"""Tasks of which each happens only after the one before it: probabilities multiply along the chain.

Notation: B batch, T tasks in the order of the chain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.models.domains import build_towers
from prismrec.models.heads.flat import FlatSets
from prismrec.models.inputs import Fields, Inputs
from prismrec.models.layers import MLPSpec, widened
from prismrec.models.mixture import FirstOrder


def chained(logits: Tensor) -> Tensor:
    """Logits of the products of probabilities, `p_t = sigma(z_1) ... sigma(z_t)`.

    `logit(p q) = -log(e^-a + e^-b + e^-(a + b))` for p = sigma(a), q = sigma(b): exact wherever
    the logits are, however near a probability is to 0 or 1. So the cross-entropy of the result is
    that of log p_t and log(1 - p_t), without either being rounded to a probability on its way.

    Args:
        logits: z (B, T), of each step given the one before it.

    Returns:
        (B, T), float32 at least.
    """
    steps = widened(logits).unbind(1)
    products = [steps[0]]
    for step in steps[1:]:
        before = products[-1]
        ways_to_fail = torch.stack([-before, -step, -(before + step)])
        products.append(-torch.logsumexp(ways_to_fail, 0))
    return torch.stack(products, 1)


class ChainedTasks(nn.Module):
    """ESMM: a tower for each step of the chain on shared vectors, and the probabilities' products.

    The logit of task t is that of `p_1 ... p_t`, over all rows: no step is trained on the rows alone
    that reached it. The step's own probability, such as pCVR, is the quotient of two neighbours.
    Labels have to keep the order: a row with label t has every label before it. Source: Ma et al.,
    Entire Space Multi-Task Model, SIGIR 2018, eq. 2 to 4; longer chains multiply on.

    Args:
        fields: shapes of the inputs; where it counts domains, each has towers of its own.
        tower: layers of each tower.
    """

    def __init__(self, fields: Fields, tower: MLPSpec) -> None:
        super().__init__()
        self.flat = FlatSets(fields, range(len(fields.set_dims)))
        self.towers = build_towers(self.flat.out_dim, tower, fields.num_tasks, fields.num_domains)
        self.bias = FirstOrder(0, fields.num_tasks)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T) of the products; no auxiliary loss."""
        steps = self.towers(self.flat(inputs).unsqueeze(1), inputs)
        return chained(steps + self.bias(None, inputs.dense)), {}
