"""Inner products of all pairs of fields (inner-product neural network)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.models.interactions.base import Interaction, flatten
from prismrec.models.interactions.pairs import pairs_of
from prismrec.models.layers import widened


class InnerProducts(Interaction):
    """`<e_i, e_j>` for i < j, pair by pair; their sum is the second-order term of an FM.

    An IPNN feeds them to a DNN beside the flattened vectors; with several sets each set's products
    go to its own projection. Source: Qu et al., Product-based Neural Networks, ICDM 2016.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        with_fields: whether the flattened vectors stand before the products.
    """

    pairs: Tensor

    def __init__(self, num_fields: int, dim: int, *, with_fields: bool = False) -> None:
        super().__init__()
        pairs = pairs_of(num_fields)
        self.with_fields = with_fields
        self.out_dim = pairs.shape[1] + (num_fields * dim if with_fields else 0)
        self.register_buffer("pairs", pairs, persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, P), or to ([M,] B, N K + P) with the fields."""
        first, second = self.pairs
        products = widened(torch.matmul(X, X.mT))[..., first, second]
        return torch.cat([flatten(X), products], -1) if self.with_fields else products


@dataclass(frozen=True, slots=True)
class InnerProductsSpec:
    """Asks for `InnerProducts`.

    Args:
        with_fields: whether the flattened vectors stand before the products.
    """

    with_fields: bool = False

    def build(self, num_fields: int, dim: int, copies: int | None) -> InnerProducts:
        """The interaction; it has no weights, so copies need nothing more."""
        return InnerProducts(num_fields, dim, with_fields=self.with_fields)
