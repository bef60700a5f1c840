"""Codes of the ids of managed tables: every id scattered over a fixed range, one to one.

The range is cut into equal spans, one for each bucket of the table, so that an id's bucket is its
code divided by the span. Codes take the place of ids between the reader and the table, where
neighbouring ids would all go to the same rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prismrec.data.encode.encoders import Mask, TableRows
from prismrec.data.encode.ids import NULL_ID, Ints

_BITS = 63
_MASK = np.uint64(2**_BITS - 1)
_OFFSET = np.uint64(0x9E3779B97F4A7C15 % 2**_BITS)
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_INVERSES = tuple(pow(factor, -1, 2**_BITS) for factor in _FACTORS)
_SHIFTS = (30, 27, 31)


def bucket_rows(rows: int, buckets: int) -> TableRows:
    """Rows of a managed table: at least `rows` for ids, in equal buckets, and an unknown one in each.

    >>> bucket_rows(20, buckets=8)
    TableRows(known=24, unknown=8, seed=0)
    """
    return TableRows(-(-rows // buckets) * buckets, buckets)


def bucket_span(buckets: int) -> int:
    """Codes of one bucket; bucket b has those from `b * span` to `(b + 1) * span`, the end not in it.

    >>> bucket_span(8) * 8 < 2**63
    True
    """
    return int((2**_BITS - 1) // buckets)


def missing_code(buckets: int) -> int:
    """The code that stands for a missing id: the last of the last bucket, which no id has."""
    return bucket_span(buckets) * buckets - 1


def id_codes(ids: Ints, buckets: int) -> Ints:
    """Codes of ids, all different for different ids from 0 to 2^63 - 1.

    An id below 0 has the code of the id 2^63 above it. `buckets` + 1 ids of all 2^63 have no code
    of their own and count as missing.

    Args:
        ids: int64 of any shape; `NULL_ID` where an id is missing.
        buckets: number of buckets of the table.

    >>> codes = id_codes(np.array([0, 1, NULL_ID]), 4)
    >>> (codes[2] == missing_code(4)).item(), raw_ids(codes[:2]).tolist()
    (True, [0, 1])
    """
    z = ids.view(np.uint64) & _MASK
    z += _OFFSET
    z &= _MASK
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
        z &= _MASK
    z ^= z >> np.uint64(_SHIFTS[2])
    missing = missing_code(buckets)
    np.minimum(z, np.uint64(missing), out=z)
    codes = z.view(np.int64)
    codes[ids == NULL_ID] = missing
    return codes


@dataclass(frozen=True, slots=True)
class CodeEncoder:
    """From ids to codes; the table itself gives codes rows while it is trained.

    Args:
        rows: the table's, an unknown one for each bucket.
    """

    rows: TableRows
    rows_per_id: int = field(default=1, init=False)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """Codes of the shape of `ids`; only a missing id is known to be unknown here."""
        missing = ids == NULL_ID
        return id_codes(ids, self.rows.unknown), missing if missing.any() else None


@dataclass(frozen=True, slots=True)
class OwnerEncoder:
    """From ids to rows of a managed table, as training left them.

    Args:
        rows: the table's, an unknown one for each bucket.
        codes: (n,) codes of the ids that have a row, rising.
        places: (n,) the row of each.
    """

    rows: TableRows
    codes: Ints
    places: Ints
    rows_per_id: int = field(default=1, init=False)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """Rows of the shape of `ids`; an id that has none is unknown and looks up its bucket's."""
        buckets = self.rows.unknown
        codes = id_codes(ids, buckets)
        rows = (codes // bucket_span(buckets) + 1) * (self.rows.total // buckets) - 1
        if not len(self.codes):
            return rows, np.ones(ids.shape, np.bool_)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        found = self.codes[at] == codes
        rows[found] = self.places[at[found]]
        return rows, None if found.all() else ~found


def owner_encoder(rows: TableRows, owners: Ints) -> OwnerEncoder:
    """The encoder of a managed table whose rows belong to certain ids.

    Args:
        rows: the table's.
        owners: (rows.total,) id of each row, `NULL_ID` where it belongs to none.
    """
    places = np.flatnonzero(owners != NULL_ID)
    codes = id_codes(owners[places], rows.unknown)
    order = np.argsort(codes)
    return OwnerEncoder(rows, codes[order], places[order])


def raw_ids(codes: Ints) -> Ints:
    """The ids, from 0 to 2^63 - 1, that have these codes; the reverse of `id_codes`."""
    z = _without_shift(codes.view(np.uint64), _SHIFTS[2])
    for shift, inverse in reversed(list(zip(_SHIFTS, _INVERSES, strict=False))):
        z *= np.uint64(inverse)
        z &= _MASK
        z = _without_shift(z, shift)
    z -= _OFFSET
    z &= _MASK
    return z.view(np.int64)


def _without_shift(values: NDArray[np.uint64], shift: int) -> NDArray[np.uint64]:
    """Undo `z ^= z >> shift` on numbers of 63 bits: each pass gets `shift` more of them right."""
    z = values.copy()
    for _ in range(-(-_BITS // shift) - 1):
        z >>= np.uint64(shift)
        z ^= values
    return z
