"""Codes of ids: one to one, evenly over the buckets, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.encode.codes import (
    CodeEncoder,
    bucket_rows,
    bucket_span,
    id_codes,
    missing_code,
    raw_ids,
)
from prismrec.data.encode.ids import NULL_ID

LARGEST = 2**63 - 1


def code_of(number: int) -> int:
    """The code of one id before any bucket, in plain integers."""
    z = (number % 2**63 + 0x9E3779B97F4A7C15) % 2**63
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**63
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**63
    return z ^ (z >> 31)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=20),
    st.integers(1, 1024),
)
def test_codes_are_those_of_plain_integers(numbers: list[int], buckets: int) -> None:
    codes = id_codes(np.array(numbers, np.int64), buckets)
    last = bucket_span(buckets) * buckets - 1
    assert codes.tolist() == [min(code_of(number), last) for number in numbers]
    kept = codes < last
    assert raw_ids(codes[kept]).tolist() == [
        number % 2**63 for number, is_kept in zip(numbers, kept, strict=True) if is_kept
    ]


@pytest.mark.parametrize("buckets", [1, 3, 8, 100])
def test_neighbouring_ids_are_spread_over_all_buckets(buckets: int) -> None:
    count = 1000 * buckets
    for ids in (np.arange(count), np.arange(count) << 40, np.arange(count) * 1000 + 7):
        codes = id_codes(ids, buckets)
        assert len(np.unique(codes)) == count
        shares = np.bincount(codes // bucket_span(buckets), minlength=buckets)
        assert len(shares) == buckets
        assert abs(shares - 1000).max() < 6 * np.sqrt(1000)


def test_a_missing_id_has_the_last_code_and_no_other_id_has_it_for_itself() -> None:
    encoder = CodeEncoder(bucket_rows(100, 8))
    codes, missing = encoder(np.array([[5, NULL_ID], [-1, LARGEST]]))
    assert codes[0, 1] == missing_code(8) == 8 * ((2**63 - 1) // 8) - 1
    assert missing is not None
    assert missing.tolist() == [[False, True], [False, False]]
    assert len(np.unique(codes)) == 4 - (LARGEST == -1 % 2**63)  # -1 counts as 2^63 - 1
    assert encoder(np.array([1, 2]))[1] is None


def test_the_ids_are_left_as_they_were() -> None:
    ids = np.array([3, NULL_ID, -9])
    id_codes(ids, 4)
    assert ids.tolist() == [3, NULL_ID, -9]


def test_rows_come_in_whole_buckets() -> None:
    assert bucket_rows(20, 8).total == 8 * (3 + 1)
    assert bucket_rows(24, 8).total == 8 * (3 + 1)
    assert bucket_rows(1, 8).total == 16
