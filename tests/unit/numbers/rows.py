"""What a number looks up, one value at a time and in whole numbers: an independent reference."""

from __future__ import annotations

import math

from prismrec.config.encodings import MNSE


def rows_of(value: float | None, encoding: MNSE, base: int, first: int = 0) -> list[int]:
    """Rows of one number of `linear` levels in `robust` mode."""
    width = 1
    while base**width < encoding.levels:
        width += 1
    flag = first + (base + 1) * width
    if value is None or math.isnan(value):
        return [first + k * (base + 1) + base for k in range(width)] + [flag + 3]
    state = 0
    if encoding.negative == "sign":
        state, value = (4 if value < 0 else 0), abs(value)
    low, high = encoding.low or 0.0, encoding.high
    assert high is not None
    state += 1 if value > high else 2 if value < low else 0
    share = (min(max(value, low), high) - low) / (high - low)
    level = math.floor(share * (encoding.levels - 1) + 0.5)
    found = []
    for k in range(width):
        found.append(first + k * (base + 1) + level % base)
        level //= base
    return [*found, flag + state]


def num_rows(encoding: MNSE, base: int) -> int:
    """Rows that a number has in `robust` mode."""
    return rows_of(None, encoding, base)[-1] - 3 + 8
