"""A learned vector for rows without behaviours, and whether a row has any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prismrec.models.layers import stacked_shape
from prismrec.models.sequence.base import Order, SequenceModule, SequenceSpec, Widths


@dataclass(frozen=True, slots=True)
class EmptyTokenSpec:
    """A module that tells empty histories apart.

    Args:
        reader: what is done with the others.
    """

    reader: SequenceSpec

    def build(self, widths: Widths, copies: int | None = None) -> SequenceModule:
        """See `SequenceSpec`."""
        return EmptyToken(self.reader.build(widths, copies), copies)


class EmptyToken(SequenceModule):
    """`[f + 1(n = 0) e; 1(n > 0)]`, f from another module and e learned, 0 at the start.

    Args:
        reader: the other module.
        copies: M, or None.
    """

    def __init__(self, reader: SequenceModule, copies: int | None = None) -> None:
        super().__init__()
        self.reader = reader
        self.token = nn.Parameter(torch.empty(stacked_shape(copies, 1, reader.out_dim)))
        self.out_dim = reader.out_dim + 1
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The vector to 0."""
        nn.init.zeros_(self.token)

    def logits(self, behaviours: Tensor, targets: Tensor, order: Order, *pair: object) -> Tensor:
        """Those of the other module."""
        return self.reader.logits(behaviours, targets, order, *pair)  # type: ignore[operator,no-any-return]

    def forward(
        self, behaviours: Tensor, targets: Tensor, order: Order, attention: object = None
    ) -> Tensor:
        """Map what the other module takes to ([M,] B, out_dim)."""
        found = self.reader(behaviours, targets, order, attention)
        has_some = (order.offsets.diff() > 0).to(found.dtype).unsqueeze(-1)
        found = found + (1 - has_some) * self.token
        return torch.cat([found, has_some.expand(*found.shape[:-1], 1)], -1)
