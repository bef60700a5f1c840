"""Raw columns of a request, checked and turned into plain arrays.

Notation: B rows, L ids in all bags together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.config import UserError, nearest
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.schema import Kind
from prismrec.data.values import NO_KEY, floats

_EXACT = 2**53
"""From here on a float no longer tells neighbouring ids apart."""
_WANTED = {
    "id": "integers",
    "ids": "lists of integers",
    "number": "numbers",
    "numbers": "lists of numbers",
    "time": "integers",
}


def to_arrow(columns: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, pa.Array]:
    """The needed columns as Arrow arrays of the types their kinds allow.

    Args:
        columns: Arrow arrays, NumPy arrays, pandas series or lists, by name; more than needed
            do no harm.
        kinds: the needed columns with their kinds.

    Returns:
        int64 for `id` and `time`, list of int64 for `ids`, list of float32 for `numbers`; for `number` whatever
        type of number the column has, as the training data may hold it too.

    Raises:
        UserError: a column is missing, of another type, or of another length than the first.
    """
    arrays: dict[str, pa.Array] = {}
    for name, kind in kinds.items():
        if name not in columns:
            raise UserError(
                f"column '{name}' is missing from the request; {nearest(name, columns)}"
            )
        arrays[name] = _typed(_array(columns[name], name, kind), name, kind)
    lengths = {name: len(array) for name, array in arrays.items()}
    first = next(iter(lengths), "")
    for name, length in lengths.items():
        if length != lengths[first]:
            raise UserError(
                f"column '{name}' has {length} rows, but column '{first}' has {lengths[first]}; "
                "every column needs one value for each row"
            )
    return arrays


def _array(values: Any, name: str, kind: Kind) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise _wrong(name, kind, str(error).splitlines()[0][:120]) from None


def _wrong(name: str, kind: Kind, got: str) -> UserError:
    return UserError(f"column '{name}' needs {_WANTED[kind]}, but the request has: {got}")


def _typed(array: pa.Array, name: str, kind: Kind) -> pa.Array:
    type_ = array.type
    if pa.types.is_null(type_):  # nothing but missing values, whose type cannot be seen
        return pa.nulls(len(array), _TARGETS[kind])
    is_list = (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )
    if is_list != (kind in ("ids", "numbers")):
        raise _wrong(name, kind, str(type_))
    if not is_list:
        return _scalars(array, name, kind)
    array = array.cast(pa.large_list(type_.value_type))
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    inner: Kind = "id" if kind == "ids" else "number"
    values = _scalars(array.flatten(), name, inner)
    if inner == "number":
        values = values.cast(pa.float32(), safe=False)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


_TARGETS = {
    "id": pa.int64(),
    "ids": pa.large_list(pa.int64()),
    "number": pa.float32(),
    "numbers": pa.large_list(pa.float32()),
    "time": pa.int64(),
}


def _scalars(array: pa.Array, name: str, kind: Kind) -> pa.Array:
    type_ = array.type
    if pa.types.is_null(type_):
        return pa.nulls(len(array), _TARGETS[kind])
    if kind == "number":
        if not (
            pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)
        ):
            raise _wrong(name, kind, str(type_))
        return array
    if pa.types.is_floating(type_):
        return _ids_of_floats(array, name, kind)
    if not pa.types.is_integer(type_):
        raise _wrong(name, kind, str(type_))
    return array.cast(pa.int64(), safe=False)  # as the reader does: 2^63 and more become negative


def _ids_of_floats(array: pa.Array, name: str, kind: Kind) -> pa.Array:
    """Ids that became floats because some are missing, as pandas makes them."""
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    is_missing = np.isnan(values)
    known = values[~is_missing]
    if not (np.isfinite(known) & (known == np.floor(known))).all():
        raise _wrong(name, kind, f"{array.type} with fractions")
    if (np.abs(known) >= _EXACT).any():
        raise _wrong(name, kind, f"ids of 2^53 and more as {array.type}; send integers")
    return pa.array(np.where(is_missing, 0, values).astype(np.int64), mask=is_missing)


def bags(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and bag sizes of an `id` or `ids` column from `to_arrow`.

    Returns:
        (L,) int64 ids, `NULL_ID` for a missing one, and (B,) int64 sizes, 1 throughout for `id`.
    """
    if pa.types.is_integer(array.type):
        return _filled(array, NULL_ID), np.ones(len(array), dtype=np.int64)
    return _filled(array.flatten(), NULL_ID), np.diff(array.offsets.to_numpy()).astype(np.int64)


def keys(array: pa.Array) -> NDArray[np.int64]:
    """(B,) int64 of an `id` column from `to_arrow`, `NO_KEY` for a missing one."""
    return _filled(array, NO_KEY)


def weights(array: pa.Array, name: str, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """(L,) float32 weights of the ids of bags of the given lengths, a missing one 0.

    Raises:
        UserError: a row has another number of weights than ids.
    """
    sizes = np.diff(array.offsets.to_numpy())
    wrong = np.flatnonzero(sizes != lengths)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"column '{name}': row {row} has {sizes[row]} weights for {lengths[row]} ids; "
            "give one weight for each id"
        )
    return np.nan_to_num(_filled(array.flatten(), 0), nan=0.0)


def numbers(array: pa.Array) -> NDArray[np.float32]:
    """(B,) float32 values, a missing one 0."""
    return without_nan(floats(array))


def without_nan(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values with 0 for NaN, in memory of their own."""
    return np.where(np.isnan(values), np.float32(0), values)


def _filled(array: pa.Array, value: int) -> NDArray[Any]:
    """Values in memory of their own: Arrow's may not be written to, which torch warns of."""
    filled = pc.fill_null(array, pa.scalar(value, array.type))
    return np.array(filled.to_numpy(zero_copy_only=False))
