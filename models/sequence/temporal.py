"""Target-aware temporal encoding: vectors of position and interval beside those of the behaviours.

Source: TIN (arXiv:2308.08487) and its released code; intervals as in the production system of DARE
(arXiv:2410.02604). The tables are part of the dense weights and not of the sharded tables: they have a few
hundred rows, every batch reads nearly all of them, and each expert learns its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prismrec.embeddings.jagged import seg_dot
from prismrec.models.layers import stacked_shape
from prismrec.models.sequence.base import Order, Widths

Encoding = Literal["position", "interval", "both", "none"]
Combine = Literal["add", "concat"]

INIT_STD = 0.01
"""Of the tables' first numbers."""


@dataclass(frozen=True, slots=True)
class TemporalSpec:
    """How position and interval enter.

    Args:
        encoding: which of the two; "none" leaves behaviours and target as they are.
        combine: "add" adds their vectors to those of behaviours and target; "concat" puts them behind.
        dim: width of the vectors behind, for "concat".
    """

    encoding: Encoding = "none"
    combine: Combine = "add"
    dim: int = 16


NO_TIME = TemporalSpec()
"""Neither position nor interval."""
POSITION = TemporalSpec("position")
"""The position's vector added."""


class Temporal(nn.Module):
    """Adds or appends the vectors of position and interval.

    One pair of tables serves behaviours and target: the target has position 0, and the interval 0.

    Args:
        spec: how.
        width: W of the vectors that come in.
        widths: numbers of positions and intervals.
        copies: M, or None.

    Attributes:
        width: of the vectors that come out.

    Raises:
        ValueError: intervals are asked for where there are none.
    """

    positions: nn.Parameter | None
    intervals: nn.Parameter | None

    def __init__(
        self, spec: TemporalSpec, width: int, widths: Widths, copies: int | None = None
    ) -> None:
        super().__init__()
        if spec.encoding in ("interval", "both") and not widths.intervals:
            raise ValueError(f"encoding '{spec.encoding}' needs intervals, and there are none")
        self.concat = spec.combine == "concat" and spec.encoding != "none"
        self.width_in = width
        self.width = width + spec.dim if self.concat else width
        dim = spec.dim if self.concat else width
        self.positions = self.intervals = None
        if spec.encoding in ("position", "both"):
            shape = stacked_shape(copies, widths.positions + 1, dim)
            self.positions = nn.Parameter(torch.empty(shape))
        if spec.encoding in ("interval", "both"):
            self.intervals = nn.Parameter(torch.empty(stacked_shape(copies, widths.intervals, dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the tables anew."""
        for table in (self.positions, self.intervals):
            if table is not None:
                nn.init.normal_(table, std=INIT_STD)

    def forward(self, behaviours: Tensor, targets: Tensor, order: Order) -> tuple[Tensor, Tensor]:
        """Encode behaviours (T, [M,] W) and targets (B, [M,] W)."""
        of_behaviours: list[Tensor] = []
        of_targets: list[Tensor] = []
        for table, places in ((self.positions, order.positions), (self.intervals, order.intervals)):
            if table is not None:
                assert places is not None
                last = table.shape[-2] - 1
                chosen = table.index_select(-2, places.clamp(max=last))
                of_behaviours.append(chosen.movedim(-2, 0))
                of_targets.append(table.select(-2, 0))
        if not of_behaviours:
            return behaviours, targets
        behind, of_target = (
            sum(of_behaviours[1:], of_behaviours[0]),
            sum(of_targets[1:], of_targets[0]),
        )
        if not self.concat:
            return behaviours + behind, targets + of_target
        of_target = of_target.expand(len(targets), *of_target.shape)
        return torch.cat([behaviours, behind], -1), torch.cat([targets, of_target], -1)

    def dot(self, behaviours: Tensor, targets: Tensor, offsets: Tensor) -> Tensor:
        """Inner products of encoded behaviours and targets over the root of their width, (T, [M]).

        Vectors that were appended are a part by themselves with a root of their own, as in the code
        of DARE.
        """
        start = self.width_in
        parts = [(0, start), (start, self.width)] if self.concat else [(0, self.width)]
        products = [
            seg_dot(behaviours[..., low:high], targets[..., low:high], offsets)
            / math.sqrt(high - low)
            for low, high in parts
        ]
        return products[0] if len(products) == 1 else products[0] + products[1]
