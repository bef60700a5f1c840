from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.adapters.vocabulary import ValueCounts, Vocabulary


@pytest.mark.parametrize(
    ("values", "known"),
    [(["b", None, "a", "b"], ["a", "b"]), ([7, None, -3, 7], [-3, 7])],
)
def test_ids_are_ranks_of_the_distinct_values(values: list[object], known: list[object]) -> None:
    vocabulary = Vocabulary.of(pa.array(values))
    assert vocabulary.values.to_pylist() == known
    assert vocabulary.encode(pa.array(values)).to_pylist() == [1, None, 0, 1]


def test_values_without_an_id_are_null_alone_and_minus_one_in_bags() -> None:
    vocabulary = Vocabulary.of(pa.array(["a", "b"]))
    assert vocabulary.encode(pa.array(["b", "z", None])).to_pylist() == [1, None, None]
    bags = pa.array([["b", "z"], [], None, ["a", None]])
    assert vocabulary.encode_bags(bags).to_pylist() == [[1, -1], [], None, [0, -1]]
    sliced = pa.chunked_array([bags.slice(0, 1), bags.slice(3)])
    assert vocabulary.encode_bags(sliced).to_pylist() == [[1, -1], [0, -1]]
    numbers = Vocabulary.of(pa.array([10, 20]))
    assert numbers.encode(pa.array([20, 30, -1, None])).to_pylist() == [1, None, None, None]


@pytest.mark.parametrize(
    ("known", "given"),
    [
        (pa.int32(), pa.array([1, 2**31, 2**32 + 1, -1])),
        (pa.int64(), pa.array([1, 2**63, 2**64 - 1, 0], pa.uint64())),
        (pa.uint64(), pa.array([1, -1, -(2**63), 0])),
        (pa.int8(), pa.array([1, 2**31 - 1, 257, 0], pa.int32())),
    ],
)
def test_an_integer_beyond_the_type_of_the_vocabulary_has_no_id(
    known: pa.DataType, given: pa.Array
) -> None:
    assert Vocabulary(pa.array([1], known)).encode(given).to_pylist() == [0, None, None, None]
    assert Vocabulary(pa.array([], known)).encode(given).null_count == 4


def test_min_count_and_empty_columns() -> None:
    counts = ValueCounts()
    counts.update(pa.array([["x"], ["y", "x"]]))
    counts.update(pa.array(["y", "z", None]))
    assert counts.vocabulary(2).values.to_pylist() == ["x", "y"]
    empty = Vocabulary.of(pa.array([None, None], pa.int64()))
    assert (len(empty), empty.num_ids) == (0, 1)
    assert empty.encode(pa.array([4, None])).to_pylist() == [None, None]


def test_written_vocabulary_maps_ids_back(tmp_path: Path) -> None:
    Vocabulary.of(pa.array(["q", "p"])).write(tmp_path, "col")
    assert Vocabulary.read(tmp_path, "col").values.to_pylist() == ["p", "q"]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.lists(st.integers(-5, 30), max_size=20), min_size=1, max_size=6), st.integers(1, 3)
)
def test_counting_in_blocks_equals_counting_at_once(
    blocks: list[list[int]], min_count: int
) -> None:
    counts = ValueCounts()
    for block in blocks:
        counts.update(pa.array(block, pa.int64()))
    everything = np.array([value for block in blocks for value in block], np.int64)
    values, times = np.unique(everything, return_counts=True)
    vocabulary = counts.vocabulary(min_count)
    assert vocabulary.values.to_pylist() == values[times >= min_count].tolist()
    encoded = vocabulary.encode(pa.array(everything)).to_pylist()
    back = [None if i is None else vocabulary.values[i].as_py() for i in encoded]
    kept = set(values[times >= min_count].tolist())
    assert back == [value if value in kept else None for value in everything.tolist()]
