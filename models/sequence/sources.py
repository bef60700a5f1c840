"""What sequence modules make of every set: one vector a row, which its experts read beside its fields.

Notation: B rows, T behaviours of a sequence, S sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from prismrec.models.inputs import Fields, SequenceInputs, SequenceShape
from prismrec.models.sequence.base import Order, SequenceModule, SequenceSpec, Widths


class SequenceVectors(nn.Module):
    """A module for each sequence and set; those of sets of equal width run as one.

    Args:
        spec: what each module is.
        fields: shapes of the sequences.
        sets: the sets that are read.

    Attributes:
        widths: by set that is read, the width of its vector: those of all sequences side by side. Sets
            that cover no behaviour are not there.
        groups: of each of `readers`, the sequence that it reads and the sets of its copies.
    """

    def __init__(self, spec: SequenceSpec, fields: Fields, sets: Iterable[int]) -> None:
        super().__init__()
        self.widths: dict[int, int] = {}
        self.groups: list[tuple[int, tuple[int, ...]]] = []
        modules: list[SequenceModule] = []
        for index, shape in enumerate(fields.sequences):
            for group in _by_width(shape, sets):
                widths = Widths(
                    shape.widths[group[0]], shape.attention, shape.positions, shape.intervals
                )
                modules.append(spec.build(widths, None if len(group) == 1 else len(group)))
                self.groups.append((index, group))
                for each in group:
                    self.widths[each] = self.widths.get(each, 0) + modules[-1].out_dim
        self.readers = nn.ModuleList(modules)

    def forward(self, sequences: list[SequenceInputs]) -> dict[int, Tensor]:
        """The vectors (B, width) by set."""
        parts: dict[int, list[Tensor]] = {each: [] for each in self.widths}
        for (index, group), reader in zip(self.groups, self.readers, strict=True):
            found = reader(*module_inputs(sequences[index], group))
            for each, vectors in zip(group, found if len(group) > 1 else [found], strict=True):
                parts[each].append(vectors)
        return {
            each: vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1)
            for each, vectors in parts.items()
        }


def module_inputs(
    given: SequenceInputs, sets: Sequence[int]
) -> tuple[Tensor, Tensor, Order, tuple[Tensor, ...] | None]:
    """What the module of some sets is called with, those of several sets stacked for its copies.

    Args:
        given: a sequence.
        sets: sets of one width, as indices.
    """
    order = Order(given.offsets, given.positions, given.intervals)
    attention = None if given.attention is None else tuple(given.attention)
    behaviours = _stacked([given.behaviours[each] for each in sets])
    targets = _stacked([given.targets[each] for each in sets])
    return behaviours, targets, order, attention


def _by_width(shape: SequenceShape, sets: Iterable[int]) -> list[tuple[int, ...]]:
    """The sets that cover a sequence, those of equal width together."""
    groups: dict[int, list[int]] = {}
    for each in sorted(sets):
        if shape.widths[each]:
            groups.setdefault(shape.widths[each], []).append(each)
    return [tuple(group) for group in groups.values()]


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts)
