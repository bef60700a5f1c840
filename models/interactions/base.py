"""What every interaction of field vectors offers.

Notation: B batch, N field vectors of one set (the fields it covers and the numeric columns), K their
width, M stacked copies.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Interaction(nn.Module):
    """A map from the field vectors of one embedding set to one vector per row.

    Built with `copies=None` its `forward` takes X (B, N, K) to (B, out_dim); built with
    `copies=M` it holds M independent sets of weights and takes (M, B, N, K) to (M, B, out_dim).
    It looks nothing up and knows nothing of other sets.

    Attributes:
        out_dim: width of the output.
        shares_input: whether with copies it also takes one X (B, N, K) that all of them read; then
            the output has no leading axis if there are no weights.
    """

    out_dim: int
    shares_input: bool = False


class InteractionSpec(Protocol):
    """What an interaction is, apart from the shape of its input: a frozen dataclass.

    Experts whose specs are equal, on sets of equal N and K, run stacked.
    """

    def build(self, num_fields: int, dim: int, copies: int | None) -> Interaction:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        ...


def flatten(X: Tensor) -> Tensor:
    """The field vectors side by side, field 0 first: (..., N, K) to (..., N * K)."""
    return X.flatten(-2)
