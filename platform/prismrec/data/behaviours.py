"""The behaviours of rows: those early enough, the newest of these, and how long ago each was.

The same function reads the rows of Parquet files and those of a request.

Notation: n rows, T behaviours of all of them before some are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.config.sequences import SequenceFeature
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.intervals import intervals
from prismrec.data.rows import Bag, Ints
from prismrec.data.schema import Kind
from prismrec.data.values import ints

Seconds = NDArray[np.float64]

_PER_SECOND = {"s": 1, "ms": 1000}


def read_behaviours(
    sequence: SequenceFeature,
    arrays: Mapping[str, pa.Array],
    time: str | None,
    where: Callable[[int], str],
) -> list[Bag]:
    """One bag of ids for each column of behaviours, and one of intervals where times are known.

    A behaviour that is not known to lie before its row, as one whose time is missing, is left out, wherever it
    stands; of the others the newest `max_length` are kept, in their order.

    Args:
        sequence: what it is.
        arrays: columns by name.
        time: column with the time of a row.
        where: a row in words, for errors.

    Raises:
        UserError: the lists of a row differ in length.
    """
    lengths = _equal_lengths(sequence, arrays, where)
    gaps = _gaps(sequence, arrays, time, lengths)
    offsets, kept = _kept(lengths, gaps, sequence.max_length)
    bags = [
        Bag(offsets, ints(arrays[each.column].flatten(), NULL_ID)[kept], None)
        for each in sequence.behaviours
    ]
    if gaps is not None:
        found = intervals(gaps[kept], sequence.buckets, sequence.num_buckets)
        bags.append(Bag(offsets, found, None))
    return bags


def _equal_lengths(
    sequence: SequenceFeature, arrays: Mapping[str, pa.Array], where: Callable[[int], str]
) -> Ints:
    """(n,) behaviours of each row; a missing list is an empty one."""
    first, *others = sequence.columns
    lengths = _lengths(arrays[first])
    for name in others:
        found = _lengths(arrays[name])
        wrong = np.flatnonzero(found != lengths)
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{where(row)}: features.sequences '{sequence.name}': column '{name}' has "
                f"{found[row]} values and '{first}' has {lengths[row]}; each behaviour needs one in "
                "every column of its sequence"
            )
    return lengths


def _gaps(
    sequence: SequenceFeature, arrays: Mapping[str, pa.Array], time: str | None, lengths: Ints
) -> Seconds | None:
    """(T,) seconds from each behaviour to its row, NaN where they are unknown; None without times."""
    if sequence.gaps is not None:
        # Through float32, as requests have them: a gap at the edge of an interval has one side only.
        single = arrays[sequence.gaps].flatten().cast(pa.float32(), safe=False)
        values = single.cast(pa.float64())
        return np.asarray(pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False))
    if sequence.times is None:
        return None
    assert time is not None  # the recipe was refused otherwise
    of_rows = np.repeat(ints(arrays[time], NULL_ID), lengths)
    of_behaviours = ints(arrays[sequence.times].flatten(), NULL_ID)
    gaps = (of_rows - of_behaviours) / _PER_SECOND[sequence.time_unit]
    return np.where((of_rows == NULL_ID) | (of_behaviours == NULL_ID), np.nan, gaps)


def _kept(lengths: Ints, gaps: Seconds | None, max_length: int) -> tuple[Ints, Ints]:
    """Offsets of the behaviours that are kept, (n + 1,), and where each was among all."""
    ends = _ends(lengths)
    kept: Ints = np.arange(ends[-1])
    if gaps is not None:
        kept = np.flatnonzero(gaps > 0)
        ends = np.searchsorted(kept, ends)
    lengths = np.diff(ends)
    short = np.minimum(lengths, max_length)
    offsets = _ends(short)
    if (short < lengths).any():
        first = np.repeat(ends[1:] - short - offsets[:-1], short)
        kept = kept[first + np.arange(offsets[-1])]
    return offsets, kept


def _ends(lengths: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _lengths(lists: pa.Array) -> Ints:
    return ints(pc.list_value_length(lists), 0)


def column_kinds(sequence: SequenceFeature) -> list[tuple[str, Kind]]:
    """The kind that each column of a sequence must have in the schema, by name."""
    kinds: list[tuple[str, Kind]] = [(each.column, "ids") for each in sequence.behaviours]
    if sequence.gaps is not None:
        kinds.append((sequence.gaps, "numbers"))
    if sequence.times is not None:
        kinds.append((sequence.times, "ids"))
    return kinds
