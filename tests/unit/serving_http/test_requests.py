"""What a body of a request becomes, or why it is refused; bodies drawn at random never break it."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.schema import Kind
from prismrec.serving.http.requests import Limits, RequestError, read_columns

KINDS: dict[str, Kind] = {
    "user": "id",
    "seen": "ids",
    "seen_w": "numbers",
    "age": "number",
    "at": "time",
}
ROWS: dict[str, list[Any]] = {
    "user": [3, None],
    "seen": [[1, 2], []],
    "seen_w": [[0.5, 1], []],
    "age": [None, 2],
    "at": [5, 6],
}
LIMITS = Limits()
RECORDS = [{name: values[row] for name, values in ROWS.items()} for row in range(2)]
SPLIT = {"columns": list(ROWS), "data": [list(each.values()) for each in RECORDS]}


def read(document: Any, limits: Limits = LIMITS) -> tuple[dict[str, Any], int]:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    sides = read_columns(text, KINDS, limits)
    assert {*sides.each, *sides.shared} == {*KINDS}
    return {name: sides.whole(name).to_pylist() for name in KINDS}, sides.rows


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {**SPLIT, "index": [7, 8]}, "params": {}},
        {"dataframe_records": RECORDS},
        {"inputs": ROWS},
        {"inputs": RECORDS},
        {"instances": RECORDS, "params": None},
    ],
)
def test_every_form_says_the_same(document: Any) -> None:
    assert read(document) == (ROWS, 2)


def test_one_record_alone_and_none_at_all() -> None:
    assert read({"inputs": RECORDS[0]}) == ({k: [v[0]] for k, v in ROWS.items()}, 1)
    empty: dict[str, list[Any]] = {name: [] for name in ROWS}
    assert read({"dataframe_records": []}) == (empty, 0)
    assert read({"dataframe_split": {"columns": list(ROWS), "data": []}}) == (empty, 0)


def test_columns_that_all_rows_share() -> None:
    own = [{"user": 3, "age": None}, {"user": 7, "age": 2}]
    shared = {"seen": [1, 2], "seen_w": [0.5, 1], "at": 5}
    expected = {
        "user": [3, 7],
        "seen": [[1, 2]] * 2,
        "seen_w": [[0.5, 1]] * 2,
        "age": [None, 2],
        "at": [5, 5],
    }
    assert read({"shared": shared, "dataframe_records": own}) == (expected, 2)
    columns = {name: [row[name] for row in own] for name in ("user", "age")}
    assert read({"inputs": columns, "shared": shared}) == (expected, 2)
    assert read({"inputs": own, "shared": None} | {"shared": shared}) == (expected, 2)
    assert read({"inputs": ROWS, "shared": {}}) == read({"inputs": ROWS})


def changed(**columns: Any) -> dict[str, Any]:
    """Columns in the form of `inputs`, some of them replaced, those given as None left out."""
    return {"inputs": {k: v for k, v in {**ROWS, **columns}.items() if v is not None}}


REFUSED = [
    (b"\xff", 400, r"not UTF-8"),
    (b"{", 400, r"not JSON: Expecting"),
    (b"", 400, r"not JSON"),
    (b"[" * 200_000, 400, r"nested too deeply"),
    (b'{"inputs": ' + b"9" * 5000 + b"}", 400, r"not JSON"),
    (b'{"inputs": NaN}', 400, r"holds NaN, .*send null"),
    ([1], 400, r"the body is a JSON list; send an object with one of 'dataframe_split', "),
    ({}, 400, r"holds nothing; send an object"),
    ({"input": ROWS}, 400, r"holds 'input'; send an object"),
    ({"inputs": ROWS, "instances": []}, 400, r"holds 'inputs', 'instances'"),
    ({"inputs": ROWS, "params": {"t": 1}}, 400, r"'params' is not empty"),
    ({"inputs": ROWS, "shared": [1]}, 400, r"'shared' is a JSON list; give one value"),
    ({"inputs": ROWS, "shared": {"at": 5}}, 400, r"'at' is in 'shared' and in the rows"),
    ({"inputs": ROWS, "shared": {"x": 5}}, 400, r"does not read column 'x'"),
    ({"shared": ROWS}, 400, r"holds nothing; send an object"),
    ({"inputs": 3}, 400, r"'inputs' is a JSON number"),
    ({"dataframe_records": {"user": 1}}, 400, r"'dataframe_records' is no list of records"),
    ({"dataframe_records": [RECORDS[0], 3]}, 400, r"row 1 of .* is a JSON number, not a record"),
    ({"dataframe_records": [RECORDS[0], {}]}, 400, r"row 1 of .*only one has column 'age'"),
    ({"dataframe_split": ROWS}, 400, r"'dataframe_split' needs 'columns'"),
    ({"dataframe_split": {**SPLIT, "columns": 1}}, 400, r"'columns' of .* is no list of names"),
    ({"dataframe_split": {**SPLIT, "columns": ["a", "a"]}}, 400, r"names 'a' more than once"),
    ({"dataframe_split": {**SPLIT, "data": 1}}, 400, r"'data' of .* is no list of rows"),
    ({"dataframe_split": {**SPLIT, "data": [[1]]}}, 400, r"row 0 .* 1 values, .* 5 columns"),
    ({"dataframe_split": {**SPLIT, "data": ["abcde"]}}, 400, r"row 0 .* is a JSON string"),
    (changed(user=None), 400, r"lacks column 'user'"),
    (changed(user=None, at=None, usr=[1, 2]), 400, r"lacks columns 'user', 'at'; .*mean 'usr'"),
    (changed(useer=[1, 2]), 400, r"does not read column 'useer'; .*did you mean 'user'"),
    (changed(user=["a", "b"]), 400, r"column 'user' needs integers, but the request has: string"),
    (changed(user=[1, "b"]), 400, r"column 'user' needs integers"),
    (changed(user=[0.5, 1]), 400, r"column 'user' needs integers.*fractions"),
    (changed(user=[2**64, 1]), 400, r"column 'user' needs integers"),
    (changed(user=[1]), 400, r"has \d rows, but column 'user' has 1"),
    (changed(user=[True, False]), 400, r"column 'user' needs integers, .*bool"),
    (changed(seen=[1, 2]), 400, r"column 'seen' needs lists of integers"),
    (changed(seen=[[1], ["\ud800"]]), 400, r"column 'seen' needs lists of integers"),
    (changed(age=["\ud800", "x"]), 400, r"column 'age' needs numbers"),
    (changed(age=[{}, {}]), 400, r"column 'age' needs numbers"),
]


@pytest.mark.parametrize(("document", "status", "expected"), REFUSED)
def test_what_is_refused(document: Any, status: int, expected: str) -> None:
    with pytest.raises(RequestError, match=expected) as caught:
        read(document)
    assert caught.value.status == status
    assert len(caught.value.message) < 700


def test_limits() -> None:
    with pytest.raises(RequestError, match=r"2 rows; at most 1 are taken") as caught:
        read({"inputs": ROWS}, Limits(rows=1))
    assert caught.value.status == 413
    with pytest.raises(RequestError, match=r"over 10 bytes; send fewer rows") as caught:
        read({"inputs": ROWS}, Limits(body_bytes=10))
    assert caught.value.status == 413
    assert read(changed(more=[1, 2]), Limits(extra_columns=True)) == (ROWS, 2)


def test_columns_that_are_ignored_do_not_say_how_many_rows_there_are() -> None:
    ignoring = Limits(rows=2, extra_columns=True)
    assert read(changed(more=[1, 2, 3]), ignoring) == (ROWS, 2)
    one = {name: values[:1] for name, values in ROWS.items()}
    assert read({"inputs": one | {"more": [1, 2]}}, ignoring) == (one, 1)
    shared = {name: values[1] for name, values in ROWS.items()}
    alone = {name: values[1:] for name, values in ROWS.items()}
    assert read({"inputs": {"more": [1, 2, 3]}, "shared": shared}, ignoring) == (alone, 1)


def test_many_and_long_names_are_refused_at_once() -> None:
    names = [f"a{n}" for n in range(20_000)]
    body = {"dataframe_split": {"columns": names, "data": []}}
    long = changed(**{"user" * 500_000: [1, 2]})
    started = time.process_time()
    for document in (body, long):
        with pytest.raises(RequestError, match="columns 'user', 'seen'|does not read column 'us"):
            read(document)
    assert time.process_time() - started < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KINDS, "columns", "data", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)
COLUMNS = st.fixed_dictionaries({name: st.lists(JSON, min_size=2, max_size=2) for name in KINDS})
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "user": st.integers(0, 9) | st.none(),
    "seen": st.just([1, 2]),
    "seen_w": st.just([0.5, 1]),
    "age": st.floats(0, 9) | st.none(),
    "at": st.integers(0, 9),
}
RIGHT = st.integers(0, 3).flatmap(
    lambda rows: st.fixed_dictionaries(
        {name: st.lists(values, min_size=rows, max_size=rows) for name, values in VALUES.items()},
        optional={"x": st.lists(JSON, max_size=4)},
    )
)
"""Columns of right values, and perhaps one that no model reads, of any length."""
FORMS = st.sampled_from(["dataframe_split", "dataframe_records", "inputs", "instances"])
BODIES = (
    st.binary(max_size=80)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FORMS, JSON, max_size=2).map(lambda value: json.dumps(value).encode())
    | COLUMNS.map(lambda columns: json.dumps({"inputs": columns}).encode())
    | RIGHT.map(lambda columns: json.dumps({"inputs": columns}).encode())
    | st.tuples(RIGHT, st.sets(st.sampled_from([*KINDS]))).map(lambda drawn: _shared(*drawn))
)
"""Anything: bytes, JSON, the right forms with wrong contents, the right columns of wrong values, and
right ones, some of them shared."""


def _shared(columns: dict[str, list[Any]], names: set[str]) -> bytes:
    shared = {name: (columns[name] or [None])[0] for name in names}
    own = {name: values for name, values in columns.items() if name not in names}
    return json.dumps({"inputs": own, "shared": shared}).encode()


@settings(max_examples=300, deadline=None)
@given(BODIES)
def test_any_body_is_columns_or_refused(body: bytes) -> None:
    try:
        sides = read_columns(body, KINDS, Limits(extra_columns=True))
    except RequestError as refused:
        status = refused.status
    else:
        status = 200
        columns = {**sides.each, **sides.shared}
        assert {len(array) for array in sides.each.values()} <= {sides.rows}
        assert {len(array) for array in sides.shared.values()} <= {1}
        assert all(isinstance(array, pa.Array) for array in columns.values())
    assert status in (200, 400)
