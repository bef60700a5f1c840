"""What gates read: sources as they are, projected, or each reader's own.

Notation: B batch, R readers, S sources, x_s the field vectors of source s side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.models.inputs import SetShape
from prismrec.models.interactions import flatten
from prismrec.models.layers import LayerNorm, Linear
from prismrec.models.sources import SourcePlan, Take, by_shape

ContextKind = Literal["projected", "concat", "own", "own_projected"]


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """What a gate reads.

    Args:
        kind: "projected" is `[LayerNorm(P_s x_s)]` of all sources side by side, so that a wide or
            large one does not speak louder than another; "concat" is `[x_s]`; "own" is
            `x_own + x_shared` of each reader; "own_projected" is
            `[LayerNorm(P x_own); LayerNorm(P x_shared)]` of each reader.
        sources: those that are read; for the own kinds, the own source of each reader. Empty for
            the sources of the layer's experts.
        shared: the source that every reader of the own kinds reads beside its own; None for none.
        width: length of the projection of a source.
    """

    kind: ContextKind = "projected"
    sources: tuple[int, ...] = ()
    shared: int | None = None
    width: int = 64

    def together(self, shapes: Sequence[SetShape]) -> list[tuple[int, ...]]:
        """The sources that it reads at once."""
        shared = () if self.shared is None else (self.shared,)
        if self.kind == "own":
            return [self.sources, *([shared] if shared else [])]
        return list(by_shape(shapes, (*self.sources, *shared)))


PROJECTED = ContextSpec()
"""Every source that the layer's experts read, projected."""


class Context(nn.Module):
    """What a gate reads, from the stacks of sources.

    Attributes:
        out_dim: length C of the context.
        is_per_reader: whether the output is (R, B, C), one context for each reader, or (B, C).
    """

    out_dim: int
    is_per_reader: bool


class Projected(Context):
    """`[LayerNorm(P_s x_s)]` of all sources, (B, S width), those of one shape first.

    Args:
        plan: how the sources are stacked.
        sources: those that are read.
        width: length of a source's projection.

    Attributes:
        groups: the sources of equal shape that are projected together.
    """

    is_per_reader = False

    def __init__(self, plan: SourcePlan, sources: Sequence[int], width: int) -> None:
        super().__init__()
        self.groups = by_shape(plan.shapes, sources)
        self.takes = nn.ModuleList(Take(plan, group) for group in self.groups)
        self.projections = nn.ModuleList(
            nn.Sequential(
                Linear(plan.width(group[0]), width, _copies(group), bias=False),
                LayerNorm(width, _copies(group)),
            )
            for group in self.groups
        )
        self.out_dim = width * sum(map(len, self.groups))

    def forward(self, stacks: Sequence[Tensor]) -> Tensor:
        """The context (B, S width)."""
        return self.of_each(stacks).transpose(0, 1).flatten(1)

    def of_each(self, stacks: Sequence[Tensor]) -> Tensor:
        """The projection of every source, (S, B, width), in the order of `groups`."""
        parts = []
        for take, projection in zip(self.takes, self.projections, strict=True):
            x = flatten(take(stacks))
            parts.append(projection(x) if len(x) > 1 else projection(x.squeeze(0)).unsqueeze(0))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Concat(Context):
    """`[x_s]` of all sources, (B, sum of their widths).

    Args:
        plan: how the sources are stacked.
        sources: those that are read.
    """

    is_per_reader = False

    def __init__(self, plan: SourcePlan, sources: Sequence[int]) -> None:
        super().__init__()
        groups = by_shape(plan.shapes, sources)
        self.takes = nn.ModuleList(Take(plan, group) for group in groups)
        self.out_dim = sum(plan.width(source) for group in groups for source in group)

    def forward(self, stacks: Sequence[Tensor]) -> Tensor:
        """The context (B, C)."""
        parts = [flatten(take(stacks)).transpose(0, 1).flatten(1) for take in self.takes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Own(Context):
    """`x_own + x_shared` of each reader, (R, B, C); `x_own` alone where it is the shared one.

    Args:
        plan: how the sources are stacked.
        own: the source of each reader.
        shared: the source that all readers add, or None.

    Raises:
        ValueError: the sources are not of one shape.
    """

    is_per_reader = True
    adds: Tensor | None

    def __init__(self, plan: SourcePlan, own: Sequence[int], shared: int | None) -> None:
        super().__init__()
        self.take_own = Take(plan, own)
        self.take_shared = None if shared is None else Take(plan, (shared,))
        if shared is not None and plan.shapes[shared] != plan.shapes[own[0]]:
            raise ValueError(
                f"a gate adds sources of one shape, got {plan.shapes[own[0]]} and "
                f"{plan.shapes[shared or 0]}; use the context 'own_projected'"
            )
        adds = None
        if shared in own:
            adds = torch.tensor([[[float(each != shared)]] for each in own])
        self.register_buffer("adds", adds, persistent=False)
        self.out_dim = plan.width(own[0])

    def forward(self, stacks: Sequence[Tensor]) -> Tensor:
        """The contexts (R, B, C)."""
        own = flatten(self.take_own(stacks))
        if self.take_shared is None:
            return own
        shared = flatten(self.take_shared(stacks))
        return own + (shared if self.adds is None else shared * self.adds.to(shared.dtype))


class OwnProjected(Context):
    """`[LayerNorm(P x_own); LayerNorm(P x_shared)]` of each reader, (R, B, C), of any widths.

    Args:
        plan: how the sources are stacked.
        own: the source of each reader.
        shared: the source that all readers read too, or None.
        width: length of a source's projection.
    """

    is_per_reader = True
    rows: Tensor

    def __init__(
        self, plan: SourcePlan, own: Sequence[int], shared: int | None, width: int
    ) -> None:
        super().__init__()
        self.projected = Projected(plan, [*own, *([] if shared is None else [shared])], width)
        order = [source for group in self.projected.groups for source in group]
        self.shared = None if shared is None else order.index(shared)
        self.register_buffer(
            "rows", torch.tensor([order.index(each) for each in own]), persistent=False
        )
        self.out_dim = width if shared is None else 2 * width

    def forward(self, stacks: Sequence[Tensor]) -> Tensor:
        """The contexts (R, B, C)."""
        projected = self.projected.of_each(stacks)
        own = projected.index_select(0, self.rows)
        if self.shared is None:
            return own
        return torch.cat([own, projected[self.shared].expand_as(own)], -1)


def build_context(spec: ContextSpec, plan: SourcePlan, num_readers: int) -> Context:
    """What a spec asks for.

    Args:
        spec: which context; its sources are given.
        plan: how the sources are stacked.
        num_readers: R.

    Raises:
        ValueError: the own kinds have no source for some reader, or a gate adds unequal shapes.
    """
    if spec.kind == "projected":
        return Projected(plan, spec.sources, spec.width)
    if spec.kind == "concat":
        return Concat(plan, spec.sources)
    if len(spec.sources) != num_readers:
        raise ValueError(
            f"a gate of {num_readers} readers needs as many own sources, got {len(spec.sources)}"
        )
    if spec.kind == "own":
        return Own(plan, spec.sources, spec.shared)
    return OwnProjected(plan, spec.sources, spec.shared, spec.width)


def _copies(group: Sequence[int]) -> int | None:
    return None if len(group) == 1 else len(group)
