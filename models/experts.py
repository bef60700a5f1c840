"""Experts: interactions on one source, and a projection to a width all experts share.

Notation: B batch, M experts, S sources, E experts of a source, N field vectors of a source, K their
width, H width of an expert's output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.models.inputs import SetShape
from prismrec.models.interactions.base import Interaction, InteractionSpec
from prismrec.models.layers import IDENTITY, MLPSpec
from prismrec.models.sources import SourcePlan, Take


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One expert: `h = MLP([I_1(X); I_2(X); ...])` for the field vectors X of one source.

    Args:
        set_index: position of its embedding set, or of its stream above the first layer.
        interactions: the interactions I, at least one.
        projection: the layers behind them; without layers the vector is used as it is.
        reads_sequences: whether what the sequence modules make of its set stands beside what the
            interactions find, in front of the layers.
    """

    set_index: int
    interactions: tuple[InteractionSpec, ...]
    projection: MLPSpec = IDENTITY
    reads_sequences: bool = False


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Experts of equal structure on sources of equal shape, which run as one stack.

    Args:
        experts: positions of the experts: those of the first source, then those of the next.
        set_indices: the sources, each once.
        shape: shape of those sources.
        beside: the sources of what sequence modules make of these, one for each; empty where the
            experts read none.
    """

    experts: tuple[int, ...]
    set_indices: tuple[int, ...]
    shape: SetShape
    beside: tuple[int, ...] = ()

    @property
    def copies(self) -> int | None:
        """The `copies` of a module that holds these experts: None for a single one."""
        return None if len(self.experts) == 1 else len(self.experts)


def plan_groups(
    experts: Sequence[ExpertSpec],
    shapes: Sequence[SetShape],
    beside: Mapping[int, int] | None = None,
) -> list[GroupPlan]:
    """Put experts that can be stacked together, in the order of each group's first expert.

    Sets of equal shape may cover different fields: each expert has weights of its own. Sources
    share a group if they have equally many experts of a structure in it.

    Args:
        experts: the experts.
        shapes: shape of each source.
        beside: by source, that of what sequence modules make of it.
    """
    beside = beside or {}
    of_sequences = [beside[each.set_index] if each.reads_sequences else None for each in experts]
    structures = [
        (each.interactions, each.projection, None if more is None else shapes[more])
        for each, more in zip(experts, of_sequences, strict=True)
    ]
    sources = [each.set_index for each in experts]
    counts = Counter(zip(structures, sources, strict=True))
    alike: dict[tuple[object, ...], dict[int, list[int]]] = {}
    for position, (structure, source) in enumerate(zip(structures, sources, strict=True)):
        key = (structure, shapes[source], counts[structure, source])
        alike.setdefault(key, {}).setdefault(source, []).append(position)
    return [
        GroupPlan(
            tuple(position for positions in of_source.values() for position in positions),
            tuple(of_source),
            shapes[next(iter(of_source))],
            tuple(
                more
                for positions in of_source.values()
                if (more := of_sequences[positions[0]]) is not None
            ),
        )
        for of_source in alike.values()
    ]


def read_by_experts(experts: Sequence[ExpertSpec], plan: SourcePlan) -> list[tuple[int, ...]]:
    """The sources that experts read at once: those of each group, and what stands beside them."""
    plans = plan_groups(experts, plan.shapes, plan.beside)
    return [read for each in plans for read in (each.set_indices, each.beside) if read]


class ExpertGroup(nn.Module):
    """M experts of equal structure, each with weights of its own, run as one.

    Args:
        spec: the structure they share.
        shape: N and K of their sources.
        copies: number M of experts, or None for a single one without a leading axis.
        beside: width of what sequence modules make of a source; 0 where the experts read none.

    Attributes:
        out_dim: width H of an expert's output.
    """

    def __init__(
        self, spec: ExpertSpec, shape: SetShape, copies: int | None, beside: int = 0
    ) -> None:
        super().__init__()
        num_fields, dim = shape
        built: list[Interaction] = [
            each.build(num_fields, dim, copies) for each in spec.interactions
        ]
        self.copies = copies
        self.interactions = nn.ModuleList(built)
        width = sum(each.out_dim for each in built) + beside
        self.projection = spec.projection.build(width, copies)
        self.out_dim = self.projection.out_dim

    def forward(self, X: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map X to what the experts found.

        Args:
            X: (B, N, K) for a single expert. For M of them (S, B, N, K), S a divisor of M: the
                first M / S experts read the first source, and so on.
            beside: (B, R) or (S, B, R), what sequence modules made of the sources.

        Returns:
            (B, H), or (M, B, H).
        """
        vectors = [self._on(interaction, X) for interaction in self.interactions]
        if beside is not None:
            vectors.append(beside if self.copies is None else self._spread(beside))
        if len(vectors) == 1:
            return self._for_each(self.projection(vectors[0]))
        return self.projection(torch.cat([self._for_each(each) for each in vectors], -1))

    def _for_each(self, x: Tensor) -> Tensor:
        """(M, B, H) also of what was found once for all experts, (B, H)."""
        return x if self.copies is None or x.dim() == 3 else x.expand(self.copies, *x.shape)

    def _on(self, interaction: nn.Module, X: Tensor) -> Tensor:
        if self.copies is None or len(X) == self.copies:
            return interaction(X)  # type: ignore[no-any-return]
        if len(X) == 1 and interaction.shares_input:
            return interaction(X.squeeze(0))  # type: ignore[no-any-return]
        return interaction(self._spread(X))  # type: ignore[no-any-return]

    def _spread(self, x: Tensor) -> Tensor:
        """Each of S sources for all M / S experts that read it: (S, ...) to (M, ...)."""
        assert self.copies is not None
        if len(x) == self.copies:
            return x
        each = self.copies // len(x)
        return x.unsqueeze(1).expand(-1, each, *x.shape[1:]).flatten(0, 1)


class Experts(nn.Module):
    """All experts of a layer, in as few stacks as they can be.

    Args:
        specs: the experts.
        plan: how their sources are stacked.

    Attributes:
        plans: which experts run together.
        order: the experts in the order of the output: group by group.
        widths: width of the output of each of them, in that order.
    """

    def __init__(self, specs: Sequence[ExpertSpec], plan: SourcePlan) -> None:
        super().__init__()
        self.plans = plan_groups(specs, plan.shapes, plan.beside)
        groups = [
            ExpertGroup(
                specs[each.experts[0]],
                each.shape,
                each.copies,
                plan.width(each.beside[0]) if each.beside else 0,
            )
            for each in self.plans
        ]
        self.groups = nn.ModuleList(groups)
        self.takes = nn.ModuleList(Take(plan, each.set_indices) for each in self.plans)
        self.takes_beside = nn.ModuleList(
            Take(plan, each.beside) if each.beside else nn.Identity() for each in self.plans
        )
        self.order = [expert for each in self.plans for expert in each.experts]
        self.widths = [
            group.out_dim
            for group, each in zip(groups, self.plans, strict=True)
            for _ in each.experts
        ]

    def forward(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """Map the stacks of sources to each group's output, (M_g, B, H_g)."""
        outputs = []
        parts = zip(self.plans, self.groups, self.takes, self.takes_beside, strict=True)
        for plan, group, take, take_beside in parts:
            X = take(stacks)
            beside = take_beside(stacks).flatten(-2) if plan.beside else None
            if group.copies is None:
                one = None if beside is None else beside.squeeze(0)
                outputs.append(group(X.squeeze(0), one).unsqueeze(0))
            else:
                outputs.append(group(X, beside))
        return outputs

    def stacked(self, stacks: Sequence[Tensor]) -> Tensor:
        """The same of experts of equal width as one (M, B, H), in `order`."""
        outputs = self(stacks)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
