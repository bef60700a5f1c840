"""Missing ids, and numbers that look random but follow from a seed: hashes of ids and of rows."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NULL_ID = int(np.iinfo(np.int64).min)
"""Stands for a missing id between decoding and encoding; a column cannot have it for an id."""


def mix64(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Scatter 64-bit values over all 64-bit values, one to one, by the output step of SplitMix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> [f"{int(each):x}" for each in mix64(np.array([0, 1], np.uint64), 0)]
    ['e220a8397b1dcdaf', '910a2dec89025cc1']
    """
    z = values + np.uint64((seed * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15) % 2**64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def name_seed(name: str) -> int:
    """A 64-bit seed that depends on a name alone, the same in training and serving."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def sample_rows(rows: Ints, rate: float, seed: int) -> NDArray[np.bool_]:
    """Which row numbers belong to a random share `rate` of all rows, always the same for a seed."""
    uniform = (mix64(rows.view(np.uint64), seed) >> np.uint64(11)) * 2.0**-53
    return np.asarray(uniform < rate)
