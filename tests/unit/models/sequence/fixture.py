"""The tiny batch that the vectors were computed on by hand, and modules with given weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.embeddings.jagged import newest_first, offsets_of
from prismrec.models.sequence import Order, Widths

E = torch.tensor(
    [[0.1, 0.2, -0.3, 0.4], [0.5, -0.1, 0.2, 0.0], [-0.2, 0.3, 0.1, -0.4]], dtype=torch.double
)
"""Three behaviours, the oldest first."""
V = torch.tensor([[0.3, -0.2, 0.5, 0.1]], dtype=torch.double)
P = torch.tensor(
    [
        [0.05, 0.05, 0.05, 0.05],
        [0.3, -0.1, 0.0, 0.2],
        [0.1, 0.1, -0.1, 0.1],
        [0.0, 0.05, -0.05, 0.0],
    ],
    dtype=torch.double,
)
"""Vectors of the target and of positions 1 to 3."""
WIDTHS = Widths(4, positions=3, intervals=5, attention=2)


def order(lengths: list[int], intervals: Tensor | None = None) -> Order:
    offsets = offsets_of(torch.tensor(lengths))
    return Order(offsets, newest_first(offsets, sum(lengths)), intervals)


def filled(module: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """The module in double precision with some of its weights replaced."""
    module.double()
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name).copy_(value)
    return module


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in double precision with weights that are all far from 0."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.double) / 2
        for name, p in module.named_parameters()
    }
    return filled(module, values)


def batch(lengths: list[int], width: int = 4, seed: int = 0, copies: int | None = None):
    """Behaviours, targets and where they lie."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if copies is None else (copies,)
    total = sum(lengths)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    where = order(lengths, torch.randint(0, 5, (total,), generator=generator))
    return draw(*lead, total, width), draw(*lead, len(lengths), width), where
