"""What every module of behaviours and a target offers.

Notation: B rows, row b with n_b behaviours from the oldest to the newest, T behaviours in all, M stacked
copies, W width of the vectors of one set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.export import register_dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """Where the behaviours of a batch lie, and how far from the target each is.

    Args:
        offsets: (B + 1,) int64, row b has behaviours offsets[b] to offsets[b + 1] - 1.
        positions: (T,) int64, 1 for a row's newest behaviour, n_b for its oldest.
        intervals: (T,) int64 bucket of the time from each behaviour to its row; None where no time is known.
    """

    offsets: Tensor
    positions: Tensor
    intervals: Tensor | None = None


register_dataclass(Order)


@dataclass(frozen=True, slots=True)
class Widths:
    """What a sequence module is built for.

    Args:
        representation: width W of the vectors that are summed.
        attention: width of the vectors that tell how much each counts, where they are others.
        positions: positions that are told apart; older behaviours share the last.
        intervals: buckets of intervals, 0 where there are none.
    """

    representation: int
    attention: int | None = None
    positions: int = 1
    intervals: int = 0


class SequenceModule(nn.Module):
    """From the behaviours and the target of each row to one vector, a zero interest where there are none.

    `forward(behaviours, targets, order, attention)` takes behaviours ([M,] T, W) and targets ([M,] B, W)
    of one set, or of M sets for M copies, and gives ([M,] B, out_dim). `attention` is a pair (T, A), (B, A)
    for modules that weigh behaviours by another set than they sum, None for the others.
    `logits` takes the same and gives ([M,] T), what the weights of the behaviours are made of.

    Attributes:
        out_dim: width of the output.
    """

    out_dim: int


class SequenceSpec(Protocol):
    """What a sequence module is, apart from widths: a frozen dataclass. Equal specs can be stacked."""

    def build(self, widths: Widths, copies: int | None = None) -> SequenceModule:
        """The module for vectors of some widths."""
        ...


def by_value(x: Tensor) -> Tensor:
    """([M,] T, W) with the T values in front, as the jagged kernels take them: (T, [M,] W)."""
    return x.movedim(-2, 0)


def by_copy(x: Tensor) -> Tensor:
    """(B, [M,] W) with the copies in front again: ([M,] B, W)."""
    return x.movedim(0, -2)
