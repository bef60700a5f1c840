"""Raw columns of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.schema import Kind
from prismrec.data.values import ints
from prismrec.serving.columns import bags, numbers, to_arrow, weights


def one(values: Any, kind: Kind) -> pa.Array:
    return to_arrow({"c": values}, {"c": kind})["c"]


@pytest.mark.parametrize(
    "values",
    [
        [3, None, -1],
        pa.array([3, None, -1], pa.int8()),
        pa.chunked_array([[3], [None, -1]]),
        pd.Series([3.0, np.nan, -1.0]),
        np.array([3.0, np.nan, -1.0], np.float32),
        pd.Series([3, None, -1], dtype="Int64"),
    ],
    ids=["list", "arrow", "chunked", "pandas", "numpy", "nullable"],
)
def test_ids_in_every_container(values: Any) -> None:
    ids, lengths = bags(one(values, "id"))
    assert ids.tolist() == [3, NULL_ID, -1]
    assert lengths.tolist() == [1, 1, 1]
    assert ids.flags.writeable


def test_bags_with_missing_bags_and_missing_ids() -> None:
    raw = [[1, 2], None, [], [None, 9]]
    for values in (
        raw,
        pd.Series([np.array([1, 2]), None, np.array([], np.int64), np.array([np.nan, 9.0])]),
        pa.array([[7], *raw], pa.list_(pa.int32()))[1:],
        pa.array(raw, pa.large_list(pa.int64())),
    ):
        ids, lengths = bags(one(values, "ids"))
        assert ids.tolist() == [1, 2, NULL_ID, 9]
        assert lengths.tolist() == [2, 0, 0, 2]


def test_columns_of_nothing_but_missing_values() -> None:
    assert bags(one([None, None], "id"))[0].tolist() == [NULL_ID] * 2
    assert bags(one([None, []], "ids"))[1].tolist() == [0, 0]
    assert numbers(one([None], "number")).tolist() == [0.0]


def test_numbers_of_every_type_and_missing_ones_as_zero() -> None:
    assert numbers(one([1.5, None, float("nan")], "number")).tolist() == [1.5, 0.0, 0.0]
    assert numbers(one([True, False], "number")).tolist() == [1.0, 0.0]
    assert numbers(one(np.array([2, 3], np.int64), "number")).tolist() == [2.0, 3.0]


def test_unsigned_ids_over_the_signed_range_are_what_the_reader_makes_of_them() -> None:
    ids, _ = bags(one(np.array([2**64 - 1, 5], np.uint64), "id"))
    decoded = ints(pa.array([2**64 - 1, 5], pa.uint64()), NULL_ID)
    assert ids.tolist() == decoded.tolist() == [-1, 5]


def test_weights_belong_to_ids() -> None:
    lengths = np.array([2, 0, 1])
    assert weights(one([[0.5, None], None, [2]], "numbers"), "w", lengths).tolist() == [0.5, 0, 2]
    with pytest.raises(UserError, match=r"column 'w': row 2 has 0 weights for 1 ids; give one"):
        weights(one([[0.5, 1.0], None, []], "numbers"), "w", lengths)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", "b"], "id", r"column 'c' needs integers, but the request has: .*string"),
        ([1.5, 2.0], "id", r"needs integers, but the request has: double with fractions"),
        ([float("inf")], "id", r"needs integers, but the request has: double with fractions"),
        ([2.0**60, None], "id", r"ids of 2\^53 and more as double; send integers"),
        ([True, False], "id", r"needs integers, but the request has: bool"),
        ([[1], [2]], "id", r"needs integers, but the request has: list"),
        ([1, 2], "ids", r"needs lists of integers, but the request has: int64"),
        ([["a"]], "ids", r"needs integers, but the request has: string"),
        ([1, "a"], "id", r"needs integers, but the request has: "),
        (["x"], "number", r"needs numbers, but the request has: string"),
        ([0.5], "numbers", r"needs lists of numbers, but the request has: double"),
    ],
)
def test_wrong_types_are_named(values: Any, kind: Kind, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        one(values, kind)


def test_missing_and_uneven_columns_are_named() -> None:
    kinds: dict[str, Kind] = {"user": "id", "item": "id"}
    with pytest.raises(
        UserError, match=r"column 'item' is missing from the request; did you mean 'itm'"
    ):
        to_arrow({"user": [1], "itm": [1]}, kinds)
    with pytest.raises(UserError, match=r"column 'item' has 2 rows, but column 'user' has 1"):
        to_arrow({"user": [1], "item": [1, 2]}, kinds)


def test_times_of_rows_are_integers() -> None:
    arrays = to_arrow({"at": [5, None, 2**40]}, {"at": "time"})
    assert arrays["at"].type == pa.int64()
    assert arrays["at"].to_pylist() == [5, None, 2**40]
    with pytest.raises(UserError, match="column 'at' needs integers, but the request has: string"):
        to_arrow({"at": ["noon"]}, {"at": "time"})
