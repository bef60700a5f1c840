"""Numbers of one column: Arrow in, numpy out, with something in the place of missing values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prismrec.config import UserError
from prismrec.data.rows import Floats, Ints

NO_KEY = -1
"""Stands for a missing domain, group or time."""


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The chunks of a column as one array; a single chunk is not copied."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(_chunks(column))


def ints(array: pa.Array, missing: int) -> Ints:
    """int64 with `missing` for null."""
    if array.type != pa.int64():
        array = array.cast(pa.int64(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, missing)
    return array.to_numpy(zero_copy_only=False)


def floats(array: pa.Array) -> Floats:
    """float32 with NaN for null."""
    if array.type != pa.float32():
        array = array.cast(pa.float32(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, float("nan"))
    return array.to_numpy(zero_copy_only=False)


def zero_one(array: pa.Array, column: str, where: str) -> tuple[Floats, Floats]:
    """Values with 0 for missing ones (null or NaN), and 1 where there is a value.

    Args:
        array: 0, 1, null or NaN.
        column: its name, for errors.
        where: file or data set, for errors.

    Raises:
        UserError: a value is none of these.
    """
    values = floats(array)
    known = (values == 0) | (values == 1)
    if known.all():
        return values, np.broadcast_to(np.float32(1), values.shape)
    missing = np.isnan(values)
    wrong = ~(known | missing)
    if wrong.any():
        raise UserError(
            f"{where}: column '{column}' holds {values[wrong][0]:g}; a label is 0, 1 or null: "
            "write it so"
        )
    return np.where(missing, np.float32(0), values), known.astype(np.float32)


def label_and_valid(
    label: tuple[str, pa.Array], sample_space: tuple[str, pa.Array] | None, where: str
) -> tuple[Floats, Floats]:
    """A task's labels, 0 for missing ones, and 1 where the row counts for the task.

    Args:
        label: name and values of the label column.
        sample_space: the same of the column that is 1 inside the task's sample space, if any; a
            missing value lies outside.
        where: file or data set, for errors.

    Raises:
        UserError: a value is not 0, 1, null or NaN.
    """
    name, array = label
    values, valid = zero_one(array, name, where)
    if sample_space is not None:
        name, array = sample_space
        inside, known = zero_one(array, name, where)
        valid = valid * inside * known
    return values, valid


def _chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks or [pa.array([], column.type)]
