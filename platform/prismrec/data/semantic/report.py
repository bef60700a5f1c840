"""Whether codes are any good: how far codebooks are used, and how many items meet in one tuple.

Notation: n items, L levels, V_l codes of level l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismrec.data.encode.ids import Ints
from prismrec.data.encode.semantic import Codes, packed
from prismrec.data.rows import Floats

Numbers = NDArray[np.float64]


def usage(codes: Ints | Codes, size: int) -> dict[str, Any]:
    """How far one codebook is used: `codes`, `used`, `dead`, `coverage`, and `perplexity`.

    The perplexity is exp(entropy): V where all codes are used alike, 1 where there is one.

    Args:
        codes: (n,) of one level.
        size: V.

    >>> usage(np.arange(8) % 4, 8)["perplexity"]
    4.0
    """
    counts = np.bincount(codes, minlength=size)
    used = int((counts > 0).sum())
    return {
        "codes": size,
        "used": used,
        "dead": size - used,
        "coverage": used / size,
        "perplexity": round(math.exp(_entropy(counts)), 6),
    }


def collisions(codes: Codes, sizes: Sequence[int]) -> dict[str, Any]:
    """How items meet in tuples of codes.

    Args:
        codes: (n, L).
        sizes: (L,).

    Returns:
        `tuples`, distinct ones; `unique_ratio`, these over the items; `collided`, share of items
        that share their tuple, and `alone`, the others; `items_per_tuple`; `largest`, items of the
        fullest tuple; `gini` of the items of tuples in use, 0 where all have as many;
        `entropy_share`, entropy over that of all possible tuples used alike.
    """
    counts = np.unique(tuple_numbers(codes, sizes), return_counts=True)[1]
    items, tuples = len(codes), len(counts)
    ordered = np.sort(counts).astype(np.float64)
    places = np.arange(1, tuples + 1)
    gini = float((2 * places - tuples - 1) @ ordered / (tuples * items))
    return {
        "tuples": tuples,
        "unique_ratio": tuples / items,
        "collided": 1 - int((counts == 1).sum()) / items,
        "alone": int((counts == 1).sum()) / items,
        "items_per_tuple": items / tuples,
        "largest": int(counts.max()),
        "gini": gini,
        "entropy_share": _entropy(counts) / sum(math.log(size) for size in sizes),
    }


def tuple_numbers(codes: Codes, sizes: Sequence[int], levels: int | None = None) -> Ints:
    """(n,) a number for the first levels of each tuple, equal where these are.

    Numbers stay below 2^63 however many levels there are: they are dealt anew where needed.
    """
    used = len(sizes) if levels is None else levels
    if math.prod(sizes[:used]) < 2**63:
        return packed(codes, range(used), sizes)
    return np.unique(codes[:, :used], axis=0, return_inverse=True)[1].reshape(-1)


def ranks_of_equal(ids: Ints, codes: Codes, sizes: Sequence[int]) -> Ints:
    """(n,) the place of each item among those of its tuple, in the order of their ids.

    >>> codes = np.array([[0, 2], [3, 3], [0, 2]], np.int32)
    >>> ranks_of_equal(np.array([5, 6, 4]), codes, (4, 4)).tolist()
    [1, 0, 0]
    """
    numbers = tuple_numbers(codes, sizes)
    order = np.lexsort((ids, numbers))
    ordered = numbers[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    places = np.arange(len(ids))
    ranks = np.empty(len(ids), np.int64)
    ranks[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return ranks


def prefix_cosines(vectors: Floats, codes: Codes, sizes: Sequence[int]) -> list[float | None]:
    """Mean cosine of two different items that share their first 0, 1, ..., L codes.

    It grows with the level where codes go from coarse to fine. None where no two items share so many.

    Args:
        vectors: (n, D), of which those of length 0 are left out.
        codes: (n, L) theirs.
        sizes: (L,).
    """
    lengths = np.linalg.norm(vectors, axis=1)
    unit = (vectors[lengths > 0] / lengths[lengths > 0, None]).astype(np.float64)
    codes = codes[lengths > 0]
    found: list[float | None] = []
    for level in range(len(sizes) + 1):
        numbers = tuple_numbers(codes, sizes, level)
        order = np.argsort(numbers, kind="stable")
        _, firsts, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        pairs = int((counts * (counts - 1)).sum())
        sums = np.add.reduceat(unit[order], firsts, axis=0) if len(unit) else np.zeros((0, 1))
        shared = counts > 1
        both = float((sums[shared] ** 2).sum()) - int(counts[shared].sum())
        found.append(both / pairs if pairs else None)
    return found


def _entropy(counts: Ints) -> float:
    """In nats, of counts that are 0 or more."""
    shares: Numbers = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
