"""A multi-layer perceptron on the field vectors side by side."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prismrec.models.interactions.base import Interaction, flatten
from prismrec.models.layers import MLPSpec


class DNN(Interaction):
    """`MLP([e_0; e_1; ...])`: the last hidden vector, with no output layer behind it.

    Source: Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016, section 3.2.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
        mlp: the layers.
        copies: number M of stacked inputs, or None.
    """

    shares_input = True

    def __init__(self, num_fields: int, dim: int, mlp: MLPSpec, copies: int | None = None) -> None:
        super().__init__()
        self.mlp = mlp.build(num_fields * dim, copies)
        self.out_dim = self.mlp.out_dim

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, out_dim)."""
        return self.mlp(flatten(X))


@dataclass(frozen=True, slots=True)
class DNNSpec:
    """Asks for a `DNN`.

    Args:
        mlp: the layers.
    """

    mlp: MLPSpec

    def build(self, num_fields: int, dim: int, copies: int | None) -> DNN:
        """The interaction for N = `num_fields` vectors of width K = `dim`."""
        return DNN(num_fields, dim, self.mlp, copies)
