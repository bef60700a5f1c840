"""How much a behaviour of a category at a position says about the label: mutual information of counts.

For rows whose target is of category c_t, X says whether the behaviour at target-relative position p exists
and is of category c_i, and Y is the label. Mutual information says how much, not in which direction: a
behaviour that speaks against the label scores as high as one that speaks for it.

Source: "Temporal Interest Network for User Response Prediction" (WWW 2024), section 2, and its released
code, which puts `eps` in the place of counts that are 0.

Notation: K categories, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prismrec.analysis.information import mutual_information as plug_in
from prismrec.train.metrics.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Estimate:
    """How mutual information is estimated.

    Args:
        eps: what stands in the place of a count of rows with the behaviour that is 0, as in the released
            code; None for the exact limit 0 log 0 = 0.
        miller_madow: take off 1 / (2 N ln 2) bits, what N rows show of two things that have nothing to do
            with each other; nothing falls below 0.
        signed: negative where the behaviour makes the label rarer.
        cond_len: count only rows that have a behaviour at the position; otherwise a shorter history
            is one without the behaviour.
    """

    eps: float | None = None
    miller_madow: bool = False
    signed: bool = False
    cond_len: bool = False


PLUG_IN = Estimate()
"""Of all rows, as counted."""


def mutual_information(with_behaviour: Ints, rows: Ints, estimate: Estimate = PLUG_IN) -> Floats:
    """Mutual information in bits of X and Y; 0 where there is no row.

    Args:
        with_behaviour: (..., 2) rows with X = 1 by label, 0 and 1.
        rows: (..., 2) all rows by label, of a shape that broadcasts with it.
        estimate: how; its `cond_len` is a matter of which rows are counted.

    Returns:
        (...) float64; from -1 to 1 bit, from 0 where it is not signed.
    """
    counted = with_behaviour.astype(np.float64)
    if estimate.eps is not None:
        counted = np.where(counted == 0, estimate.eps, counted)
    cells = np.stack([rows - counted, counted], -2).clip(min=0)  # (..., X, Y)
    nats, by_chance = plug_in(torch.from_numpy(cells))
    bits = np.where(rows.sum(-1) > 0, nats.numpy() / math.log(2), 0.0)
    if estimate.miller_madow:
        bits = np.maximum(bits - by_chance.numpy() / math.log(2), 0.0)
    if estimate.signed:
        # P(Y = 1 | X = 1) - P(Y = 1), multiplied by what is not negative: whole numbers, no rounding.
        bits = bits * np.sign(
            with_behaviour[..., 1] * rows[..., 0] - with_behaviour[..., 0] * rows[..., 1]
        )
    return bits


def standard_error(with_behaviour: Ints, rows: Ints) -> Floats:
    """(...) standard error in bits of the mutual information as counted; 0 where there is no row.

    The delta method's, which falls to 0 where X and Y have nothing to do with each other, but no less than
    the spread that the estimate has there, sqrt 2 / (2 N ln 2). Near there it is up to half as large again
    as the spread, on the safe side.

    Args:
        with_behaviour: (..., 2) rows with X = 1 by label, 0 and 1.
        rows: (..., 2) all rows by label, of a shape that broadcasts with it.
    """
    cells = np.stack([rows - with_behaviour, with_behaviour], -2).astype(np.float64)
    of_x, of_y = cells.sum(-1, keepdims=True), cells.sum(-2, keepdims=True)
    total = of_x.sum(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(cells > 0, np.log2(cells * total / (of_x * of_y)), 0.0)
        shares = np.where(cells > 0, cells / total, 0.0)
    count = np.maximum(total[..., 0, 0], 1)
    mean = (shares * bits).sum((-2, -1))
    variance = np.maximum((shares * bits**2).sum((-2, -1)) - mean**2, 0.0) / count
    null = math.sqrt(2) / (2 * count * math.log(2))
    error: Floats = np.where(total[..., 0, 0] > 0, np.maximum(np.sqrt(variance), null), 0.0)
    return error


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each category was behaved towards at each position, by target category and label.

    Args:
        categories: (K,) ids, the most frequent target category first.
        behaviours: (K, K, P, 2) rows by target category, category of the behaviour, position (from
            1, the newest) and label 0 or 1.
        rows: (K, 2) rows by target category and label.
        long_rows: (K, P, 2) those of them that have a behaviour at the position.
    """

    categories: Ints
    behaviours: Ints
    rows: Ints
    long_rows: Ints

    @property
    def positions(self) -> int:
        """P."""
        return self.behaviours.shape[2]

    def information(self, estimate: Estimate = PLUG_IN) -> Floats:
        """(K, K, P) mutual information in bits, see `mutual_information`."""
        rows = self.long_rows[:, None] if estimate.cond_len else self.rows[:, None, None]
        return mutual_information(self.behaviours, rows, estimate)

    def standard_error(self) -> Floats:
        """(K, K, P) standard error of `information()` in bits, see `standard_error`."""
        return standard_error(self.behaviours, self.rows[:, None, None])

    def support(self) -> Ints:
        """(K, K, P) rows with the behaviour."""
        return self.behaviours.sum(-1)

    def is_supported(self, rows: int = 700, each: int = 50) -> NDArray[np.bool_]:
        """(K, K, P) whether there is enough to go by.

        Args:
            rows: rows with the target category that are needed.
            each: rows of either label with the behaviour that are needed. Both defaults are those
                of the released code of DARE (arXiv:2410.02604).
        """
        enough: NDArray[np.bool_] = np.all(self.behaviours >= each, axis=-1)
        return enough & (self.rows.sum(-1) >= rows)[:, None, None]


def min_max(values: Floats) -> Floats:
    """The values from 0, the least, to 1, the largest, for display; NaN stays; all 0 if all are equal."""
    low, high = np.nanmin(values), np.nanmax(values)
    scaled: Floats = np.where(np.isnan(values), np.nan, 0.0 if high == low else 1.0)
    return scaled if high == low else (values - low) / (high - low)
