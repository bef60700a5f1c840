"""From the ids of a column to rows of a table: one class for each kind of `embedding.tables.NAME.ids`.

The same objects encode on the reader's threads and in a served model: they hold no state that changes,
and know neither batches nor requests. FBGEMM would silently read row 0 for an id outside the table;
what leaves an encoder always lies inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prismrec.data.encode.ids import NULL_ID, Ints, mix64, name_seed

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TableRows:
    """How the rows of a table are shared out: first those for known ids, then the unknown rows.

    Args:
        known: rows that ids have for themselves, or share by design.
        unknown: rows for all other ids, at least 1. The last is that of missing ids; the rest, if
            there are more, are shared out by a hash.
        seed: of that hash.
    """

    known: int
    unknown: int = 1
    seed: int = 0

    @property
    def total(self) -> int:
        """All rows of the table."""
        return self.known + self.unknown

    def of_unknown(self, ids: Ints) -> Ints:
        """Rows of ids that have none of their own, missing ones among them.

        >>> TableRows(10, 1).of_unknown(np.array([99, NULL_ID])).tolist()
        [10, 10]
        >>> TableRows(10, 2).of_unknown(np.array([99, NULL_ID])).tolist()
        [10, 11]
        """
        last = self.total - 1
        if self.unknown == 1:
            return np.full(ids.shape, last)
        shared = self.known + fold(ids, self.unknown - 1, self.seed)
        return np.where(ids == NULL_ID, last, shared)


class Encoder(Protocol):
    """What every kind can do.

    Attributes:
        rows: how the table's rows are shared out.
        rows_per_id: rows that an id looks up, whose sum is its vector; at least 1.
    """

    @property
    def rows(self) -> TableRows:
        """See the attributes."""

    @property
    def rows_per_id(self) -> int:
        """See the attributes."""

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """Rows that ids look up, and which of the ids have none of their own.

        Args:
            ids: int64 of any shape; `NULL_ID` where one is missing.

        Returns:
            Rows of the shape of `ids`, its last axis `rows_per_id` times as long: the rows of an id
            lie next to each other. `ids` itself where nothing had to change. A mask of the shape
            of `ids`, or None where every id has rows of its own.
        """


@dataclass(frozen=True, slots=True)
class DirectEncoder:
    """An id is its own row; a negative or too large one is unknown.

    >>> rows, unknown = DirectEncoder(TableRows(5))(np.array([0, 4, 5, -1]))
    >>> rows.tolist(), unknown.tolist()
    ([0, 4, 5, 5], [False, False, True, True])
    """

    rows: TableRows
    rows_per_id: int = field(default=1, init=False)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `Encoder`."""
        unknown = outside(ids, self.rows.known)
        if unknown is None:
            return ids, None
        found = ids.copy()
        found[unknown] = self.rows.of_unknown(ids[unknown])
        return found, unknown


@dataclass(frozen=True, slots=True)
class HashEncoder:
    """Ids of any value, negative ones too, are folded into the known rows.

    Args:
        rows: the table's.
        seeds: one or two; an id looks up a row by each.
    """

    rows: TableRows
    seeds: tuple[int, ...]

    @property
    def rows_per_id(self) -> int:
        """Number of hashes."""
        return len(self.seeds)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `Encoder`."""
        found = [fold(ids, self.rows.known, seed) for seed in self.seeds]
        unknown = ids == NULL_ID
        return with_unknown(found, ids, unknown, self.rows)


@dataclass(frozen=True, slots=True)
class QuotientRemainderEncoder:
    """An id looks up the row of its quotient and, behind all of those, that of its remainder.

    Source: Shi et al., "Compositional embeddings using complementary partitions", KDD 2020.

    >>> encoder = QuotientRemainderEncoder(TableRows(2 + 3), num_ids=6, divisor=3)
    >>> encoder(np.array([4, 5]))[0].tolist()
    [1, 3, 1, 4]

    Args:
        rows: the table's; the known ones are `ceil(num_ids / divisor) + divisor`.
        num_ids: ids from here on are unknown.
        divisor: m, also the number of remainders.
    """

    rows: TableRows
    num_ids: int
    divisor: int
    rows_per_id: int = field(default=2, init=False)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `Encoder`."""
        unknown = outside(ids, self.num_ids)
        quotients, remainders = np.divmod(ids, self.divisor)
        found = [quotients, remainders + (self.rows.known - self.divisor)]
        return with_unknown(found, ids, unknown, self.rows)


@dataclass(frozen=True, slots=True)
class VocabularyEncoder:
    """Ids are looked up in a list; one that is not in it is unknown.

    Args:
        rows: the table's; as many known ones as the list has ids.
        ids: (n,) the known ids in rising order.
        places: (n,) the row of each of them.
        digest: SHA-256 of the file the list came from.
    """

    rows: TableRows
    ids: Ints
    places: Ints
    digest: str
    rows_per_id: int = field(default=1, init=False)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `Encoder`."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        unknown = self.ids[at] != ids
        return with_unknown([self.places[at]], ids, unknown, self.rows)


def outside(ids: Ints, limit: int) -> Mask | None:
    """Which ids are not in 0..limit-1; None where all are."""
    unsigned = ids.view(np.uint64)  # a negative id is a huge one: one comparison finds both
    if ids.size == 0 or unsigned.max() < limit:
        return None
    return np.asarray(unsigned >= limit)


def hash_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Seeds of the hashes of one table: its own, and others that follow from it."""
    return (seed, *(name_seed(f"{seed}/{number}") for number in range(1, count)))


def fold(ids: Ints, rows: int, seed: int) -> Ints:
    """A row below `rows` for every id, by the hash of a seed."""
    return (mix64(ids.view(np.uint64), seed) % np.uint64(rows)).astype(np.int64)


def with_unknown(
    found: list[Ints], ids: Ints, unknown: Mask | None, rows: TableRows
) -> tuple[Ints, Mask | None]:
    """Rows of ids side by side, unknown rows where an id has none, which are written into `found`.

    An unknown id has the same row in each of its places.
    """
    if unknown is not None and not unknown.any():
        unknown = None
    if unknown is not None:
        instead = rows.of_unknown(ids[unknown])
        for each in found:
            each[unknown] = instead
    if len(found) == 1:
        return found[0], unknown
    return np.stack(found, axis=-1).reshape(*ids.shape[:-1], -1), unknown
