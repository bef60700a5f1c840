"""Ids as they stand in a column, to rows of a table.

A table has `num_rows` rows for known ids and one more, the last, for everything else: missing,
negative and too large ids. FBGEMM would silently read row 0 for those.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NULL_ID = int(np.iinfo(np.int64).min)
"""Stands for a missing id between decoding and `row_ids`."""


def row_ids(
    ids: Ints, num_rows: int, hash_seed: int | None = None
) -> tuple[Ints, NDArray[np.bool_] | None]:
    """Rows of the table that `ids` look up, and which of them went to the unknown row.

    Args:
        ids: int64 of any shape; `NULL_ID` where an id is missing.
        num_rows: rows for known ids; row `num_rows` is the unknown row.
        hash_seed: fold ids of any value into the known rows by this seed; without it an id
            is its own row and anything outside 0..num_rows-1 is unknown.

    Returns:
        The rows, `ids` itself where nothing had to change, and a mask of the unknown ones,
        None where there are none.

    >>> row_ids(np.array([0, 4, 5, -1]), 5)
    (array([0, 4, 5, 5]), array([False, False,  True,  True]))
    """
    if hash_seed is not None:
        return _hashed(ids, num_rows, hash_seed)
    unsigned = ids.view(np.uint64)  # a negative id is a huge one: one comparison finds both
    if ids.size == 0 or unsigned.max() < num_rows:
        return ids, None
    unknown = unsigned >= num_rows
    return np.where(unknown, num_rows, ids), unknown


def _hashed(ids: Ints, num_rows: int, seed: int) -> tuple[Ints, NDArray[np.bool_] | None]:
    rows = (mix64(ids.view(np.uint64), seed) % np.uint64(num_rows)).astype(np.int64)
    unknown = ids == NULL_ID
    if not unknown.any():
        return rows, None
    rows[unknown] = num_rows
    return rows, unknown


def mix64(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Scatter 64-bit values over all 64-bit values, one to one, by the output step of SplitMix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
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
