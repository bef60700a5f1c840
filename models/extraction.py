"""Layers of experts behind gates: one, as in MMoE, or several on top of each other, as in PLE.

Every reader, a task or the shared stream, takes a mix of the experts of a layer. The readers' mixes
are the sources of the next layer's experts; the mixes of the last one go to the tasks' towers.

Notation: B batch, M experts of a layer, R readers, T tasks, H width of an expert's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prismrec.models.contexts import ContextSpec
from prismrec.models.experts import Experts, ExpertSpec, read_by_experts
from prismrec.models.gates import SOFTMAX, GateSpec, build_gate, mix
from prismrec.models.inputs import Inputs, SetShape
from prismrec.models.routing import EVERYONE, Routing, everything
from prismrec.models.sources import SourcePlan, plan_sources


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Experts, and a gate of each reader over them.

    Args:
        experts: at least one, of equal output width.
        gate: how readers weigh them.
        routing: which of them a reader sees and moves.
        has_shared_stream: whether there is a reader beside the tasks, the last one.
    """

    experts: tuple[ExpertSpec, ...]
    gate: GateSpec = SOFTMAX
    routing: Routing = EVERYONE
    has_shared_stream: bool = False

    @property
    def context(self) -> ContextSpec:
        """What the gate reads: where it names no source, those of the experts."""
        chosen = self.gate.context
        read = tuple(sorted({each.set_index for each in self.experts}))
        return chosen if chosen.sources else replace(chosen, sources=read)

    def together(self, plan: SourcePlan) -> list[tuple[int, ...]]:
        """The sources that experts or gates read at once."""
        is_read = self.gate.kind in ("softmax", "elements")
        of_gates = self.context.together(plan.shapes) if is_read else []
        return read_by_experts(self.experts, plan) + of_gates


class Layer(nn.Module):
    """One layer of experts and gates.

    Args:
        spec: what it is.
        plan: how its sources are stacked.
        num_tasks: T.

    Attributes:
        experts: in `experts.order`, which is also that of the gates' columns.
        out_dim: H.

    Raises:
        ValueError: experts are of unequal width, the routing does not fit, or the gate's context
            does not.
    """

    keep: Tensor | None

    def __init__(self, spec: LayerSpec, plan: SourcePlan, num_tasks: int) -> None:
        super().__init__()
        num_readers, num_experts = num_tasks + spec.has_shared_stream, len(spec.experts)
        spec.routing.check(num_readers, num_experts)
        self.experts = Experts(spec.experts, plan)
        if len(set(self.experts.widths)) > 1:
            raise ValueError(
                f"experts behind a gate must have one output width, got {self.experts.widths}"
            )
        self.out_dim = self.experts.widths[0]
        use = spec.routing.use or everything(num_readers, num_experts)
        keep = spec.routing.keep or everything(num_readers, num_experts)
        order = self.experts.order
        gate = replace(spec.gate, context=spec.context)
        if gate.scores is not None:
            ordered = tuple(tuple(row[m] for m in order) for row in gate.scores)
            gate = replace(gate, scores=ordered)
        in_order = tuple(tuple(row[m] for m in order) for row in use)
        self.gate = build_gate(gate, plan, in_order, self.out_dim)
        kept = torch.tensor([[float(row[m]) for m in order] for row in keep])
        self.register_buffer("keep", None if all(map(all, keep)) else kept, persistent=False)

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Map the stacks of sources to the readers' mixes (B, R, H), and the experts (M, B, H).

        With a common gate the mixes are (B, 1, H).
        """
        experts = self.experts.stacked(stacks)
        return mix(experts, self.gate(stacks, inputs), self.keep), experts


class Extraction(nn.Module):
    """Layers of experts, each reading the mixes of the one below.

    Args:
        layers: the layers, the lowest first; all but the last may have a shared stream.
        plan: how the sources of the lowest layer are stacked.
        num_tasks: T.

    Attributes:
        out_dim: H of the last layer.
        expert_dim: H of the lowest layer.

    Raises:
        ValueError: the last layer has a shared stream, which nobody would read; or see `Layer`.
    """

    def __init__(self, layers: Sequence[LayerSpec], plan: SourcePlan, num_tasks: int) -> None:
        super().__init__()
        if layers[-1].has_shared_stream:
            raise ValueError("nobody reads the shared stream of the last layer; it must have none")
        built: list[Layer] = []
        for spec in layers:
            built.append(Layer(spec, plan, num_tasks))
            streams: list[SetShape] = [(1, built[-1].out_dim)] * (
                num_tasks + spec.has_shared_stream
            )
            plan = plan_sources(streams, range(len(streams)))
        self.layers = nn.ModuleList(built)
        self.expert_dim, self.out_dim = built[0].out_dim, built[-1].out_dim

    def forward(self, stacks: Sequence[Tensor], inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Map the stacks of sources to the tasks' mixes (B, T, H), and the lowest layer's experts.

        With a common gate in the last layer the mixes are (B, 1, H).
        """
        mixes, experts = self.layers[0](stacks, inputs)
        for layer in list(self.layers)[1:]:
            streams = mixes.transpose(0, 1).unsqueeze(2)
            mixes, _ = layer([streams], inputs)
        return mixes, experts
