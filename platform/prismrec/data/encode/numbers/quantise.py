"""From numbers to levels: whole numbers, together with what else is known of the number.

All arithmetic is in float64: float32 cannot tell 16,777,216 from the number after it. A number becomes a
code, `state * levels + level`, or `NULL_ID` where it is missing; the level is from 0 to `levels` - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from prismrec.config.encodings import Quantiser
from prismrec.data.encode.ids import NULL_ID, Ints

Doubles = NDArray[np.float64]


class State(IntEnum):
    """What is known of a number besides its level."""

    OK = 0
    ABOVE = 1
    """Above the range; the level is the last."""
    BELOW = 2
    """Below the range; the level is 0."""
    MISSING = 3
    NEGATIVE = 4
    """Below 0, where the level is that of the number without its sign."""
    NEGATIVE_ABOVE = 5
    """Both."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Spreads numbers over levels, for one number of a recipe.

    Args:
        kind: see `MNSE.quantiser`.
        levels: Q, at least 2.
        low: least number with a level.
        high: largest number with a level, above `low`.
        unit: c, what counts as small for `log1p` and `asinh`.
        boundaries: (M,) rising numbers, M at most Q - 1, for `cdf` alone.
        has_sign: numbers below 0 have the level of the number without its sign.
    """

    kind: Quantiser
    levels: int
    low: float
    high: float
    unit: float = 1.0
    boundaries: Doubles | None = None
    has_sign: bool = False

    def __call__(self, values: Doubles) -> Ints:
        """Codes of numbers; NaN is a missing one, and infinite ones lie outside the range.

        >>> Levels("linear", 1024, 0.0, 1.0)(np.array([0.5, 2.0, -3.0])).tolist()
        [512, 2047, 2048]
        """
        missing = np.isnan(values)
        state = np.zeros(values.shape, np.int64)
        if self.has_sign:
            state[values < 0] = State.NEGATIVE
            values = np.abs(values)
        above, below = values > self.high, values < self.low
        level = self.level(np.where(missing, self.low, np.clip(values, self.low, self.high)))
        if self.kind == "cdf":  # whose range need not reach the first and the last rank
            level[above], level[below] = self.levels - 1, 0
        state[above] += State.ABOVE
        state[below] = State.BELOW
        codes = state * self.levels + level
        codes[missing] = NULL_ID
        return codes

    def level(self, inside: Doubles) -> Ints:
        """Levels of numbers from `low` to `high`."""
        if self.kind == "count":
            return (np.floor(inside) - self.low).astype(np.int64)
        # Not rint, which takes the even neighbour of a half.
        return np.floor(self.share(inside) * (self.levels - 1) + 0.5).astype(np.int64)

    def share(self, inside: Doubles) -> Doubles:
        """Where numbers from `low` to `high` lie between the two: 0 to 1."""
        low, high, unit = self.low, self.high, self.unit
        if self.kind == "cdf":
            assert self.boundaries is not None
            rank = np.searchsorted(self.boundaries, inside, side="right")
            return rank / max(len(self.boundaries), 1)
        if self.kind == "log1p":
            return np.log1p((inside - low) / unit) / np.log1p((high - low) / unit)
        if self.kind == "asinh":
            least = np.arcsinh(low / unit)
            return (np.arcsinh(inside / unit) - least) / (np.arcsinh(high / unit) - least)
        return (inside - low) / (high - low)


def split_codes(codes: Ints, levels: int) -> tuple[Ints, Ints]:
    """States and levels of codes; a missing number has `State.MISSING` and level 0."""
    missing = codes == NULL_ID
    state, level = np.divmod(np.where(missing, 0, codes), levels)
    state[missing] = State.MISSING
    return state, level
