"""PEPNet: one network, made personal by gates on its inputs and its hidden units.

Notation: B batch, T tasks, D width of the flattened vectors x, h_l width of hidden layer l.

Source: Chang et al., PEPNet: Parameter and Embedding Personalized Network for Infusing with
Personalized Prior Information, KDD 2023.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models.heads.flat import FlatSets
from prismrec.models.inputs import Fields, Inputs
from prismrec.models.layers import Linear, MLPSpec, build_norm, widened
from prismrec.models.mixture import FirstOrder

Position = Literal["pre", "post"]


class GateUnit(nn.Module):
    """Factors in (0, gamma), `gamma sigma(ReLU(a U + c) U' + c')`.

    U' and c' start at 0, so that every factor starts at gamma / 2. The sigmoid is taken in float32
    at least.

    Args:
        in_features: width of a.
        out_features: number of factors.
        hidden: width of the hidden layer; `out_features` if None.
        gamma: upper bound; 2 makes gates that change nothing at the start.
    """

    def __init__(
        self, in_features: int, out_features: int, hidden: int | None = None, gamma: float = 2.0
    ) -> None:
        super().__init__()
        self.gamma = gamma
        width = out_features if hidden is None else hidden
        self.enter = Linear(in_features, width)
        self.leave = Linear(width, out_features, init="zero")

    def forward(self, a: Tensor) -> Tensor:
        """Map (B, in_features) to factors (B, out_features)."""
        scores = self.leave(F.relu(self.enter(a)))
        return self.gamma * torch.sigmoid(widened(scores))


@dataclass(frozen=True, slots=True)
class PepnetSpec:
    """What a PEPNet is.

    Args:
        prior_set: position of the set of prior features (user, item, author).
        domain_set: position of the set of domain features; None leaves the gate on x out.
        tower: hidden layers of each task's tower.
        position: "pre" gates the input of every layer, the first one's included; "post" the output
            of every hidden layer.
        gate_hidden: width of the gates' hidden layers; that of their output if None.
        gamma: upper bound of the factors.
    """

    prior_set: int
    domain_set: int | None
    tower: MLPSpec
    position: Position = "pre"
    gate_hidden: int | None = None
    gamma: float = 2.0


class Pepnet(nn.Module):
    """Gates by domain on x, gates by prior features on the towers' units.

    `o = gate([e_domain; sg(x)]) * x`; for each layer l and task t `delta_tl = gate_l([e_prior;
    sg(o)])`, and `H_t(l+1) = ReLU((delta_tl * H_tl) W_tl + b_tl)` from H_t1 = o, or with the gate
    behind the ReLU. sg stops gradients: the vectors x are trained through the towers alone, those of
    domain and prior features through the gates alone.

    Args:
        fields: shapes of the inputs.
        spec: see `PepnetSpec`; the sets that it does not name make x.

    Raises:
        ValueError: every set is one of domain or prior features.
    """

    def __init__(self, fields: Fields, spec: PepnetSpec) -> None:
        super().__init__()
        named = {spec.prior_set, spec.domain_set}
        main = [m for m in range(len(fields.set_dims)) if m not in named]
        if not main:
            raise ValueError("a PEPNet needs a set besides those of domain and prior features")
        self.position = spec.position
        self.num_tasks = fields.num_tasks
        self.flat = FlatSets(fields, main)
        self.prior = FlatSets(fields, [spec.prior_set], has_numeric=False)
        width = self.flat.out_dim
        self.domain: FlatSets | None = None
        if spec.domain_set is not None:
            self.domain = FlatSets(fields, [spec.domain_set], has_numeric=False)
            self.input_gate = GateUnit(
                self.domain.out_dim + width, width, spec.gate_hidden, spec.gamma
            )
        widths = [width, *spec.tower.hidden]
        gated = widths if spec.position == "pre" else widths[1:]
        self.gates = nn.ModuleList(
            GateUnit(
                self.prior.out_dim + width, fields.num_tasks * each, spec.gate_hidden, spec.gamma
            )
            for each in gated
        )
        tasks, norm = fields.num_tasks, spec.tower.norm
        self.linears = nn.ModuleList(
            Linear(i, o, tasks, bias=norm != "batch") for i, o in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(build_norm(norm, o, tasks) for o in spec.tower.hidden)
        self.dropout = nn.Dropout(spec.tower.dropout)
        self.head = Linear(widths[-1], 1, tasks, bias=False)
        self.bias = FirstOrder(0, tasks)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T); no auxiliary loss."""
        x = self.flat(inputs)
        if self.domain is not None:
            x = x * self.input_gate(torch.cat([self.domain(inputs), x.detach()], 1)).to(x.dtype)
        context = torch.cat([self.prior(inputs), x.detach()], 1)
        h = x.expand(self.num_tasks, -1, -1)
        for layer, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            if self.position == "pre":
                h = self._gated(h, context, layer)
            h = self.dropout(F.relu(norm(linear(h))))
            if self.position == "post":
                h = self._gated(h, context, layer)
        if self.position == "pre":
            h = self._gated(h, context, len(self.linears))
        # Outside autocast: logits rounded to bfloat16 would tie, and AUC would lose.
        with torch.autocast(h.device.type, enabled=False):
            logits = self.head(widened(h)).squeeze(-1).mT
        return logits + self.bias(None, inputs.dense), {}

    def _gated(self, h: Tensor, context: Tensor, layer: int) -> Tensor:
        """Units (T, B, h_l) times the factors of each task."""
        factors = self.gates[layer](context).unflatten(1, (self.num_tasks, -1)).transpose(0, 1)
        return h * factors.to(h.dtype)
