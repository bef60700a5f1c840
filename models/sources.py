"""What experts and gates read: the field vectors of sets, those of equal shape stacked.

A source is an embedding set, with its numeric fields, or what sequence modules make of a set, one field
vector, or, above the first layer of experts, a stream: a task's mix of the layer below, which is one
field vector as wide as an expert's output.

Notation: B batch, N field vectors of a source, K their width, S sources of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from prismrec.models.inputs import SetShape


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How sources are stacked.

    Args:
        shapes: shape (N, K) of every source, read or not.
        stacks: sources of one shape, ascending; each source that is read is in one of them.
        beside: by set, the source of what sequence modules make of it.
    """

    shapes: tuple[SetShape, ...]
    stacks: tuple[tuple[int, ...], ...]
    beside: dict[int, int] = field(default_factory=dict)

    @property
    def sources(self) -> list[int]:
        """The sources that are read, ascending."""
        return sorted(source for stack in self.stacks for source in stack)

    def place(self, source: int) -> tuple[int, int]:
        """The stack that a source is in, and its row there."""
        for number, stack in enumerate(self.stacks):
            if source in stack:
                return number, stack.index(source)
        raise ValueError(f"source {source} is in no stack; there are {self.stacks}")

    def width(self, source: int) -> int:
        """Length N K of a source's field vectors side by side."""
        count, dim = self.shapes[source]
        return count * dim


def plan_sources(
    shapes: Sequence[SetShape], read: Iterable[int], together: Sequence[Sequence[int]] = ()
) -> SourcePlan:
    """Stack the sources that are read, those of equal shape together, by their first one.

    Args:
        shapes: shape of every source.
        read: the sources that some expert or gate reads, in any order.
        together: sources that something reads at once. A stack holds those that are always read by
            the same, so that none is cut: the gradient of a cut is a stack of zeros with a part in it.
    """
    readers = {
        source: tuple(number for number, each in enumerate(together) if source in each)
        for source in sorted(set(read))
    }
    alike: dict[tuple[SetShape, tuple[int, ...]], list[int]] = {}
    for source, of_source in readers.items():
        alike.setdefault((shapes[source], of_source), []).append(source)
    return SourcePlan(tuple(shapes), tuple(tuple(stack) for stack in alike.values()))


def by_shape(shapes: Sequence[SetShape], sources: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """The sources in groups of equal shape, ascending, by the first one of each group."""
    alike: dict[SetShape, list[int]] = {}
    for source in sorted(set(sources)):
        alike.setdefault(shapes[source], []).append(source)
    return tuple(tuple(group) for group in alike.values())


class Take(nn.Module):
    """Some sources of one shape, in any order, out of the stacks: a view where it can be one.

    Args:
        plan: how the sources are stacked.
        sources: at least one, all of one shape; a source may come several times.

    Raises:
        ValueError: the sources are of several shapes.
    """

    def __init__(self, plan: SourcePlan, sources: Sequence[int]) -> None:
        super().__init__()
        shapes = sorted({plan.shapes[source] for source in sources})
        if len(shapes) > 1:
            raise ValueError(f"sources that are read together must have one shape, got {shapes}")
        places = [plan.place(source) for source in sources]
        runs = [(stack, [row for _, row in run]) for stack, run in groupby(places, lambda p: p[0])]
        self.stacks = [stack for stack, _ in runs]
        self.pieces = nn.ModuleList(_Rows(rows, len(plan.stacks[stack])) for stack, rows in runs)

    def forward(self, stacks: Sequence[Tensor]) -> Tensor:
        """Map the stacks, (S, B, N, K) each, to the sources (len(sources), B, N, K)."""
        pieces = [
            piece(stacks[stack]) for piece, stack in zip(self.pieces, self.stacks, strict=True)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class _Rows(nn.Module):
    """Rows of a stack: itself, neighbours as a view, others as a copy."""

    index: Tensor | None

    def __init__(self, rows: list[int], height: int) -> None:
        super().__init__()
        self.first, self.count, self.is_whole = rows[0], len(rows), rows == list(range(height))
        is_run = rows == list(range(self.first, self.first + self.count))
        index = None if is_run else torch.tensor(rows)
        self.register_buffer("index", index, persistent=False)

    def forward(self, stack: Tensor) -> Tensor:
        if self.is_whole:
            return stack
        if self.index is not None:
            return stack.index_select(0, self.index)
        return stack[self.first : self.first + self.count]
