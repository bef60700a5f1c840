"""What a model is given: the shapes when it is built, the tensors when it runs.

Notation: B batch, N sparse fields, N_m those of them that set m covers, D numeric columns, d_m width of
set m, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.export import register_dataclass

SetShape = tuple[int, int]
"""Number N of field vectors of a set, and their width K."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The shapes of a model's inputs and output.

    Args:
        num_sparse: number N of all sparse fields, which first-order weights cover.
        num_dense: number D of numeric columns.
        set_dims: width d_m of each embedding set.
        num_tasks: number T of logits.
        set_fields: number N_m of sparse fields that each set covers, 1 to N.
    """

    num_sparse: int
    num_dense: int
    set_dims: tuple[int, ...]
    num_tasks: int
    set_fields: tuple[int, ...]

    @property
    def set_shapes(self) -> tuple[SetShape, ...]:
        """Field vectors of each set and their width: N_m sparse ones, then one per numeric column."""
        return tuple(
            (count + self.num_dense, dim)
            for count, dim in zip(self.set_fields, self.set_dims, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch as a model sees it.

    Args:
        sets: for each embedding set m the vectors of the sparse fields that it covers,
            (B, N_m, d_m); may be strided views.
        linear: first-order weights of the sparse fields, (B, N, T); None where the model has none.
        dense: numeric columns, (B, D); D may be 0.
        domain: domain (scenario) of each row, (B,) int64; None where the recipe names no domain.
    """

    sets: list[Tensor]
    linear: Tensor | None
    dense: Tensor
    domain: Tensor | None = None


register_dataclass(Inputs)
