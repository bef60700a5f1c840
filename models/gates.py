"""Gates: how much of each expert a reader listens to. A reader is a task, or the shared stream.

Notation: B batch, M experts, R readers, H width of an expert's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.models.contexts import PROJECTED, ContextSpec, build_context
from prismrec.models.domains import DomainLinear
from prismrec.models.inputs import Inputs
from prismrec.models.layers import IDENTITY, Linear, MLPSpec, widened
from prismrec.models.routing import Table
from prismrec.models.sources import SourcePlan

GateKind = Literal["softmax", "elements", "static", "weights", "sum", "mean"]


@dataclass(frozen=True, slots=True)
class GateSpec:
    """Asks for a gate.

    Args:
        kind: "softmax" is a distribution over experts for each row; "elements" one for each row
            and element of the experts' vectors; "static" one that is learned and the same for all
            rows; "weights" learned numbers that start at 1; "sum" 1 and "mean" 1 / M, not learned.
        context: what "softmax" and "elements" read.
        hidden: layers between the context and the scores, a stack of them for each reader.
        is_common: whether all readers have one gate.
        scores: where the scores of "static" start, R x M; 0 if not given.
        num_domains: number of domains, each of which has W and b of its own in a gate that reads
            rows; 0 for the same for all.
    """

    kind: GateKind = "softmax"
    context: ContextSpec = PROJECTED
    hidden: MLPSpec = IDENTITY
    is_common: bool = False
    scores: tuple[tuple[float, ...], ...] | None = None
    num_domains: int = 0


SOFTMAX = GateSpec()
"""A softmax over experts for each reader, of what the experts read."""


class Scored(nn.Module):
    """A distribution over experts for each row and reader, `softmax(W MLP(c) + b)`.

    W and b start at 0: training begins at the plain mean of the experts a reader sees. The softmax
    is taken in float32 at least. Source: Ma et al., Modeling Task Relationships in Multi-task
    Learning with Multi-gate Mixture-of-Experts, KDD 2018, eq. 6. With `elements` the distribution
    is taken for each element of the experts' vectors by itself, without b, as in the prior-informed
    gate of Crocodile; there the axis of the softmax is our reading.

    Args:
        spec: the gate.
        plan: how the sources are stacked.
        use: R x M, which experts a reader sees; None for all. One row if the gate is common.
        num_readers: R, 1 for a common gate.
        num_experts: M.
        elements: H for a distribution per element, else None.
    """

    hidden_experts: Tensor | None

    def __init__(
        self,
        spec: GateSpec,
        plan: SourcePlan,
        use: Table | None,
        num_readers: int,
        num_experts: int,
        elements: int | None,
    ) -> None:
        super().__init__()
        self.num_readers, self.num_experts, self.elements = num_readers, num_experts, elements
        self.context = build_context(spec.context, plan, num_readers)
        width = self.context.out_dim
        scores, has_bias = num_experts * (elements or 1), elements is None
        self.body: nn.Module
        if self.context.is_per_reader or spec.hidden.hidden:
            self.body = spec.hidden.build(width, num_readers)
            width = self.body.out_dim
            copies: int | None = num_readers
        else:
            self.body, copies = nn.Identity(), None
            scores *= num_readers
        self.scores: Linear | DomainLinear
        if spec.num_domains:
            domains = spec.num_domains
            self.scores = DomainLinear(width, scores, domains, copies, bias=has_bias, is_zero=True)
        else:
            self.scores = Linear(width, scores, copies, bias=has_bias, init="zero")
        unseen = None if use is None or all(map(all, use)) else ~torch.tensor(use)
        self.register_buffer("hidden_experts", unseen, persistent=False)

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """Map the stacks of sources to gates (B, R, M), or (B, R, M, H) per element."""
        read = self.body(self.context(stacks))
        if isinstance(self.scores, DomainLinear):
            assert inputs.domain is not None
            if self.scores.weight.dim() == 4 and read.dim() == 2:  # one context for all readers
                read = read.expand(self.num_readers, -1, -1)
            scores = widened(self.scores(read, inputs.domain))
        else:
            scores = widened(self.scores(read))
        scores = scores.transpose(0, 1) if scores.dim() == 3 else scores
        each = () if self.elements is None else (self.elements,)
        scores = scores.flatten(1).unflatten(1, (self.num_readers, self.num_experts, *each))
        if self.hidden_experts is not None:
            unseen = (
                self.hidden_experts if self.elements is None else self.hidden_experts[..., None]
            )
            scores = scores.masked_fill(unseen, -torch.inf)
        return torch.softmax(scores, 2)


class Static(nn.Module):
    """Gates that are the same for all rows: a learned distribution, or learned or fixed numbers.

    Args:
        kind: "static", "weights", "sum" or "mean" of `GateSpec`.
        use: R x M, which experts a reader sees; an unseen one has gate 0.
        start: R x M, where the scores of "static" start; None for 0.

    Attributes:
        bias: R x M, the scores or the numbers; None where they are not learned. It is called so
            that weight decay spares it.
    """

    bias: nn.Parameter | None
    start: Tensor
    seen: Tensor

    def __init__(
        self, kind: GateKind, use: Table, start: tuple[tuple[float, ...], ...] | None
    ) -> None:
        super().__init__()
        self.kind = kind
        seen = torch.tensor(use, dtype=torch.float32)
        given = torch.zeros(seen.shape) if start is None else torch.tensor(start)
        if given.shape != seen.shape:
            raise ValueError(f"scores must start as {tuple(seen.shape)}, got {tuple(given.shape)}")
        if kind == "mean":
            seen = seen / seen.sum(-1, keepdim=True)
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("start", given, persistent=False)
        is_learned = kind in ("static", "weights")
        self.bias = nn.Parameter(torch.empty(seen.shape)) if is_learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scores where they are to start, free numbers to 1."""
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(
                    self.start if self.kind == "static" else torch.ones_like(self.start)
                )

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """Gates (R, M)."""
        if self.bias is None:
            return self.seen
        if self.kind == "weights":
            return self.seen * self.bias
        return torch.softmax(widened(self.bias).masked_fill(self.seen == 0, -torch.inf), -1)


Gate = Scored | Static


def build_gate(spec: GateSpec, plan: SourcePlan, use: Table, elements: int) -> Gate:
    """The gate that a spec asks for; its `forward(stacks, inputs)` gives what `mix` takes.

    Args:
        spec: which gate.
        plan: how the sources are stacked.
        use: R x M, which experts a reader sees.
        elements: width H of the experts' vectors.

    Raises:
        ValueError: readers that share a gate see different experts, or the context does not fit.
    """
    if spec.is_common:
        if len(set(use)) > 1:
            raise ValueError("readers that share a gate must see the same experts")
        use = use[:1]
    if spec.kind in ("softmax", "elements"):
        per_element = elements if spec.kind == "elements" else None
        return Scored(spec, plan, use, len(use), len(use[0]), per_element)
    return Static(spec.kind, use, spec.scores)


def mix(experts: Tensor, gates: Tensor, keep: Tensor | None = None) -> Tensor:
    """The experts' outputs weighted by the gates, `Z_br = sum_m G_brm E_mb`.

    With `keep`, a reader's gradient reaches only the experts that it keeps, while the value stays
    the same: `Z = (G keep) E + (G (1 - keep)) sg(E)`, sg the stop-gradient.

    Args:
        experts: E (M, B, H).
        gates: G (B, R, M); (R, M) the same for all rows; (B, R, M, H) for each element.
        keep: (R, M), 1 where the reader may move the expert, else 0; None for 1 everywhere.

    Returns:
        Z (B, R, H).
    """
    if keep is None:
        return _weighted(experts, gates)
    keep = keep.to(gates.dtype)
    if gates.dim() == 4:
        keep = keep.unsqueeze(-1)
    return _weighted(experts, gates * keep) + _weighted(experts.detach(), gates * (1 - keep))


def _weighted(experts: Tensor, gates: Tensor) -> Tensor:
    if gates.dim() == 4:
        # Rows first, or the products would be laid out experts first and copied for the softmax.
        return (gates * experts.transpose(0, 1).contiguous().unsqueeze(1)).sum(2)
    if gates.dim() == 2:
        return torch.einsum("rm,mbh->brh", gates, experts)
    return torch.einsum("brm,mbh->brh", gates, experts)
