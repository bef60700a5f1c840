"""From the time between a behaviour and its row to one of a few intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prismrec.config.sequences import Buckets

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_WIDTH = 0.301
"""Of an interval of `hstu_ln` in natural logarithms: a factor of 1.351, as in the code of HSTU."""


def intervals(gaps: Floats, buckets: Buckets, count: int) -> Ints:
    """The interval of each gap, the longest in the last.

    >>> intervals(np.array([0.0, 59, 60, 3600, 86400]), "log2min", 10).tolist()
    [0, 0, 1, 5, 9]

    Args:
        gaps: seconds, 0 and up.
        buckets: how they are told apart, see `SequenceFeature`.
        count: number of intervals.
    """
    if buckets == "log2min":
        found = np.log2(1 + gaps / 60)
    elif buckets == "hstu_ln":
        found = np.log(np.maximum(gaps, 1)) / _WIDTH
    else:
        found = np.sqrt(np.maximum(gaps, 1e-6) / 60)
    return np.minimum(np.floor(found), count - 1).astype(np.int64)
