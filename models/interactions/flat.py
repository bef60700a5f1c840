"""No interaction: the field vectors side by side."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prismrec.models.interactions.base import Interaction, flatten


class Flat(Interaction):
    """The field vectors side by side, `[e_0; e_1; ...]`.

    Args:
        num_fields: number N of fields.
        dim: width K of a field's vector.
    """

    shares_input = True

    def __init__(self, num_fields: int, dim: int) -> None:
        super().__init__()
        self.out_dim = num_fields * dim

    def forward(self, X: Tensor) -> Tensor:
        """Map ([M,] B, N, K) to ([M,] B, N * K)."""
        return flatten(X)


@dataclass(frozen=True, slots=True)
class FlatSpec:
    """Asks for a `Flat`."""

    def build(self, num_fields: int, dim: int, copies: int | None) -> Flat:
        """The interaction; it has no weights, so copies need nothing more."""
        return Flat(num_fields, dim)
