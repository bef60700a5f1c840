"""Numbers as single rows: a bucket each. The plain way, beside which digits are measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prismrec.config.encodings import LOG_EDGE
from prismrec.data.encode.encoders import Mask
from prismrec.data.encode.ids import NULL_ID, Ints
from prismrec.data.encode.numbers.quantise import Doubles


def log_bucket(values: Doubles) -> Ints:
    """`floor(ln(x)^2)` above 2, `floor(x) - 2` below; numbers are at least 0 and finite.

    >>> log_bucket(np.array([0.0, 1, 2, 3, 10, 100, 1000, 1e6])).tolist()
    [-2, -1, 0, 1, 5, 21, 47, 190]
    """
    large = values > LOG_EDGE
    logs = np.log(np.where(large, values, 1.0))
    return np.where(large, np.floor(logs * logs), np.floor(values) - LOG_EDGE).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LogBuckets:
    """From numbers to logarithmic buckets: 0 holds those below 0, 1 those of bucket -2, and so on.

    Args:
        count: number of buckets; the last takes what is beyond.
    """

    count: int

    def __call__(self, values: Doubles) -> Ints:
        """Buckets of numbers, `NULL_ID` for NaN."""
        missing, below = np.isnan(values), values < 0
        # Anything from e^sqrt(count) on is beyond the last bucket, and infinity has no whole part.
        inside = np.where(missing | below, 0.0, np.minimum(values, 1e300))
        codes = np.minimum(log_bucket(inside) + 3, self.count - 1)
        codes[below] = 0
        codes[missing] = NULL_ID
        return codes


@dataclass(frozen=True, slots=True)
class QuantileBuckets:
    """From numbers to how many of some boundaries they reach.

    Args:
        boundaries: rising, each once.
    """

    boundaries: Doubles

    def __call__(self, values: Doubles) -> Ints:
        """Buckets of numbers, `NULL_ID` for NaN."""
        codes = np.searchsorted(self.boundaries, values, side="right").astype(np.int64)
        codes[np.isnan(values)] = NULL_ID
        return codes


@dataclass(frozen=True, slots=True)
class BucketForm:
    """Buckets as rows of a table, one each, and behind them the row of a missing number.

    Args:
        buckets: how many.
    """

    buckets: int

    @property
    def rows(self) -> int:
        """Rows of a table that a number has."""
        return self.buckets + 1

    @property
    def drawn(self) -> int:
        """Rows that begin with drawn weights; the others begin at 0."""
        return self.buckets

    @property
    def bag(self) -> int:
        """Rows that a value looks up."""
        return 1

    @property
    def added(self) -> int:
        """Those of them that begin with drawn weights."""
        return 1

    def rows_of(self, codes: Ints) -> Ints:
        """Rows that codes look up, counted from the number's first, along a last axis of `bag`."""
        return np.where(codes == NULL_ID, self.buckets, codes)[..., None]

    def odd(self, codes: Ints) -> Mask:
        """Which codes stand for a missing number."""
        return codes == NULL_ID
