"""Pairwise products of all fields (factorization machine)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prismrec.models.interactions.base import Interaction
from prismrec.models.layers import widened


class BiInteraction(Interaction):
    """Element-wise products of all pairs of fields, summed.

    `sum_{i<j} e_i * e_j = ((sum_i e_i)^2 - sum_i e_i^2) / 2`, which costs O(N K). The sum of its
    K numbers is the second-order term of an FM. Sums are taken in float32 at least, because the
    two terms nearly cancel. Source: Rendle, Factorization Machines, ICDM 2010; the vector form:
    He and Chua, Neural Factorization Machines, SIGIR 2017, eq. 4.

    Args:
        dim: width K of a field's vector.
    """

    shares_input = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, K)."""
        X = widened(X)
        return 0.5 * (X.sum(-2).square() - X.square().sum(-2))


@dataclass(frozen=True, slots=True)
class FMSpec:
    """Asks for a `BiInteraction`."""

    def build(self, num_fields: int, dim: int, copies: int | None) -> BiInteraction:
        """The interaction; it has no weights, so copies need nothing more."""
        return BiInteraction(dim)
