"""What every metric does to its arrays: check them, divide them, find equal neighbours, mix bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def checked_rows(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """The three columns in float64, rows of weight 0 left out; no weights means weight 1.

    Raises:
        ValueError: the columns differ in length or have more than one dimension, or a weight
            is negative or not a number.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    weight = np.ones_like(score) if weights is None else np.asarray(weights, np.float64)
    if not (score.ndim == 1 and score.shape == label.shape == weight.shape):
        raise ValueError(
            "scores, labels and weights must be one-dimensional and of equal length, "
            f"got shapes {score.shape}, {label.shape} and {weight.shape}"
        )
    if not (weight >= 0).all():
        raise ValueError("weights must be at least 0 and not NaN")
    kept = weight > 0
    if kept.all():
        return score, label, weight
    return score[kept], label[kept], weight[kept]


def checked_ids(ids: ArrayLike, weights: ArrayLike | None, num_rows: int) -> Ints:
    """Integer ids of `num_rows` rows, without those of rows of weight 0.

    Raises:
        ValueError: there is not one integer per row.
    """
    values = np.asarray(ids)
    kept = None if weights is None else np.asarray(weights) > 0
    expected = num_rows if kept is None else kept.size
    if values.shape != (expected,) or not (values.size == 0 or values.dtype.kind in "iu"):
        raise ValueError(
            f"groups must be {expected} integers, one per row, "
            f"got {values.dtype} of shape {values.shape}"
        )
    return (values if kept is None else values[kept]).astype(np.int64)


def ratio(numerator: Any, denominator: Any) -> Floats:
    """Element-wise quotient; NaN where the denominator is not above 0."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    quotient = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom > 0)
    return quotient


def run_starts(*columns: NDArray[Any]) -> Ints:
    """Index of the first row of every run of rows that agree in all columns.

    >>> run_starts(np.array([1, 1, 2, 2]), np.array([5, 5, 5, 6])).tolist()
    [0, 2, 3]
    """
    changes = np.ones(columns[0].size, dtype=bool)
    if changes.size:
        changes[1:] = False
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes).astype(np.int64)


def mix64(keys: NDArray[Any]) -> NDArray[np.uint64]:
    """Spread 64-bit integers evenly over all 64-bit integers, one to one (splitmix64)."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
