"""The part of the tables that lies on this rank, as checkpoints and analysis see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

NEVER = -1
"""Stands for the step of a row that no step has touched."""


@dataclass
class LocalShard:
    """A block of one logical tensor `table/set` on this rank, with its optimizer state.

    A packed table gives one shard per set: slices of the same memory. Writing into `weight` or a
    state writes into the table.

    Args:
        table: name of the logical table.
        set_name: name of the embedding set.
        num_rows: rows of the whole table.
        num_cols: width of the whole set.
        row: first row of the block in the table.
        col: first column of the block in the set.
        weight: (rows, cols) block of the weights, a view.
        states: optimizer state by name; (rows, cols) views for element-wise state, (rows,) for
            row-wise state. Names are the same for fused and plain optimizers.
        is_replica: the same block also lies on a lower rank, which writes it.
        touched: (rows,) int32 steps done when training touched each row last, `NEVER` where it has not;
            None where nobody keeps that.
    """

    table: str
    set_name: str
    num_rows: int
    num_cols: int
    row: int
    col: int
    weight: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)
    is_replica: bool = False
    touched: Tensor | None = None

    @property
    def key(self) -> str:
        """`table/set`, the name of the logical tensor."""
        return f"{self.table}/{self.set_name}"
