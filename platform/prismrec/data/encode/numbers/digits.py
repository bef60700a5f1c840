"""Levels as digits of a numeral system, and digits as rows of a table.

Source: Pan et al., "Ads Recommendation in a Collapsed and Entangled World", KDD 2024, multiple numeral
systems encoding. Position k is that of b^k: the least significant digit comes first.

A number has `width * base` rows in `paper` mode. In `robust` mode each position has one row more, that of
no digit at all, and behind all positions stand `FLAGS` rows, one for each `State`: `width * (base + 1) + 8`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from prismrec.data.encode.encoders import Mask
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.numbers.quantise import State, split_codes

FLAGS = 8
"""Rows for states, some of them for later ones."""

_LISTED_LEVELS = 2**16
"""Rows of up to as many levels are written down once; of more, they are computed."""


def digits(levels: Ints, base: int, width: int) -> Ints:
    """Digits of whole numbers from 0 to base^width - 1, along a last axis of length `width`.

    >>> digits(np.array([6]), 3, 4).tolist()
    [[0, 2, 0, 0]]
    """
    powers = np.array([base**k for k in range(width)], np.int64)
    return levels[..., None] // powers % base


@dataclass(frozen=True, slots=True)
class DigitForm:
    """How levels are written in one table.

    Args:
        base: of the numeral system.
        width: number of digits.
        levels: Q, at most base^width.
        mode: `robust` or `paper`.
    """

    base: int
    width: int
    levels: int
    mode: Literal["robust", "paper"]

    @property
    def rows(self) -> int:
        """Rows of a table that a number has."""
        if self.mode == "paper":
            return self.base * self.width
        return (self.base + 1) * self.width + FLAGS

    @property
    def bag(self) -> int:
        """Rows that a value looks up."""
        return self.width if self.mode == "paper" else self.width + 1

    @property
    def drawn(self) -> int:
        """Rows that begin with drawn weights; those of states begin at 0."""
        return self.rows if self.flag_row is None else self.flag_row

    @property
    def added(self) -> int:
        """Rows of a bag that begin with drawn weights."""
        return self.width

    @property
    def flag_row(self) -> int | None:
        """The row of `State.OK`, before those of the other states."""
        return None if self.mode == "paper" else (self.base + 1) * self.width

    def rows_of(self, codes: Ints) -> Ints:
        """Rows that codes look up, counted from the number's first, along a last axis of `bag`."""
        state, level = split_codes(codes, self.levels)
        if self.levels <= _LISTED_LEVELS:
            found = _listed(self)[level]
        else:
            found = _digit_rows(self, level)
        if self.flag_row is None:
            return found
        missing = state == State.MISSING
        if missing.any():
            no_digit = np.arange(self.width) * (self.base + 1) + self.base
            found[missing] = np.append(no_digit, self.flag_row)
        found[..., -1] += state
        return found

    def odd(self, codes: Ints) -> Mask:
        """Which codes stand for missing numbers or ones out of range."""
        state, _ = split_codes(codes, self.levels)
        return (state != State.OK) & (state != State.NEGATIVE)


def _digit_rows(form: DigitForm, level: Ints) -> Ints:
    """Rows of levels with nothing special about them."""
    stride = form.base if form.mode == "paper" else form.base + 1
    rows = digits(level, form.base, form.width) + np.arange(form.width) * stride
    if form.flag_row is None:
        return rows
    return np.concatenate([rows, np.full((*level.shape, 1), form.flag_row)], axis=-1)


@cache
def _listed(form: DigitForm) -> Ints:
    """(Q, bag) rows of every level."""
    return _digit_rows(form, np.arange(form.levels))
