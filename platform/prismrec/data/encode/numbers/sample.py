"""A uniform sample of a stream of numbers in bounded memory, and the quantiles it tells."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from prismrec.data.encode.ids import Ints, mix64
from prismrec.data.encode.numbers.quantise import Doubles

SAMPLE_SIZE = 2**18
"""Values that are kept of a number: the share of the training rows below a quantile is told to about
0.1 %, and below the 0.1 % quantile to about 0.006 %, one standard deviation each."""


class Sample:
    """As many values of a stream as fit, each with the same chance, none twice.

    Every row has a hash of its number, and the values of the least hashes stay: the sample of a stream is
    the same however it is cut, and samples of two parts can be joined. A stream no longer than `size`
    is kept whole.

    Args:
        size: most values that are kept.
        seed: of the hashes.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._values: list[Doubles] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._held = 0
        self._limit = np.uint64(2**64 - 1)
        self.count = 0
        """Values of the stream so far."""

    def add(self, values: Doubles, rows: Ints) -> None:
        """Take finite values and the numbers of their rows, which are all different."""
        hashes = mix64(rows.view(np.uint64), self._seed)
        near = hashes <= self._limit
        self._values.append(values[near])
        self._hashes.append(hashes[near])
        self._held += int(near.sum())
        self.count += len(values)
        if self._held > 2 * self._size:
            self._drop()

    def join(self, other: Sample) -> None:
        """Take the rows of another part of the stream: a sample of the same size and seed."""
        self._values += other._values
        self._hashes += other._hashes
        self._held += other._held
        self.count += other.count
        self._drop()

    def values(self) -> Doubles:
        """(min(size, count),) the values, rising."""
        self._drop()
        return np.sort(np.concatenate([np.empty(0), *self._values]))

    def _drop(self) -> None:
        """Keep what belongs to the sample."""
        if self._held <= self._size:
            return
        values, hashes = np.concatenate(self._values), np.concatenate(self._hashes)
        kept = np.argpartition(hashes, self._size - 1)[: self._size]
        self._values, self._hashes = [values[kept]], [hashes[kept]]
        self._held, self._limit = self._size, hashes[kept].max()


def quantiles(rising: Doubles, shares: tuple[float, ...]) -> list[float]:
    """For each share p the least of the values that p of them do not exceed; values, none in between.

    >>> quantiles(np.array([1.0, 2.0, 3.0, 4.0]), (0.25, 0.26, 1.0))
    [1.0, 2.0, 4.0]
    """
    places = np.ceil(np.array(shares) * len(rising) - 1e-9).astype(np.int64) - 1
    return rising[np.clip(places, 0, len(rising) - 1)].tolist()


def share_error(sample: int, count: int, share: float) -> float:
    """Standard deviation of the share of all values that lie below a sample's quantile.

    >>> share_error(2**18, 10**9, 0.5) < 0.001, share_error(500, 500, 0.5)
    (True, 0.0)

    Args:
        sample: values in the sample.
        count: values that it was drawn from.
        share: of the quantile.
    """
    left = 1 - sample / count if count else 0.0
    return math.sqrt(share * (1 - share) / sample * left) if sample else 0.0
