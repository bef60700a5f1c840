"""Rising maps of logits, put behind a trained model so that its probabilities meet the world's.

Notation: B rows, T tasks, z logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitMap:
    """A continuous, strictly rising, piecewise linear map of logits.

    It keeps the order of rows, and with it every AUC.

    Args:
        x: (K,) ascending logits, at least one.
        y: (K,) what they become, ascending.
        low_slope: slope below x[0], above 0.
        high_slope: slope above x[-1], above 0.

    Raises:
        ValueError: it does not rise.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low_slope: float
    high_slope: float

    def __post_init__(self) -> None:
        rising = all(a < b for each in (self.x, self.y) for a, b in pairwise(each))
        same = len(self.x) == len(self.y) > 0
        if not (rising and same and self.low_slope > 0 and self.high_slope > 0):
            raise ValueError(f"a map of logits must rise: {self}")

    @classmethod
    def line(cls, slope: float, offset: float) -> LogitMap:
        """`slope * z + offset`."""
        return cls((0.0,), (offset,), slope, slope)

    def __call__(self, logits: Tensor) -> Tensor:
        """The mapped logits, of any shape; computed in float64, returned in their own type."""
        x, y = (torch.tensor(each, dtype=torch.float64) for each in (self.x, self.y))
        inner = torch.diff(y) / torch.diff(x)
        ends = (inner.new_tensor([self.low_slope]), inner.new_tensor([self.high_slope]))
        slopes = torch.cat([ends[0], inner, ends[1]])
        z = logits.double()
        segment = torch.searchsorted(x, z.contiguous(), right=True)
        anchor = (segment - 1).clamp(min=0)
        return (y[anchor] + slopes[segment] * (z - x[anchor])).to(logits.dtype)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LogitMap:
        """The map that `to_json` wrote."""
        return cls(tuple(value["x"]), tuple(value["y"]), value["low_slope"], value["high_slope"])


IDENTITY = LogitMap.line(1.0, 0.0)
"""Leaves every logit as it is."""


def mapped(maps: Sequence[LogitMap], logits: Tensor) -> Tensor:
    """Logits (B, T) through the map of each task, on the CPU; without maps as they are."""
    if not maps:
        return logits
    return torch.stack([each(z) for each, z in zip(maps, logits.unbind(1), strict=True)], 1)
