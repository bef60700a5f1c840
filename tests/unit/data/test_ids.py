import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.encode.ids import NULL_ID, mix64, name_seed, row_ids, sample_rows


def test_known_ids_are_their_own_rows_and_are_not_copied() -> None:
    ids = np.array([0, 3, 4, 3])
    rows, unknown = row_ids(ids, 5)
    assert rows is ids
    assert unknown is None


def test_everything_else_goes_to_the_last_row() -> None:
    rows, unknown = row_ids(np.array([0, 5, -1, NULL_ID, 4, 2**62]), 5)
    assert rows.tolist() == [0, 5, 5, 5, 4, 5]
    assert unknown is not None
    assert unknown.tolist() == [False, True, True, True, False, True]


def test_mixing_gives_the_published_sequence_of_splitmix64() -> None:
    # The generator's first outputs from state 1234567, as its reference implementation prints them.
    golden = 0x9E3779B97F4A7C15
    states = np.array([1234567, (1234567 + golden) % 2**64], np.uint64)
    assert mix64(states, 0).tolist() == [6457827717110365317, 3203168211198807973]


def test_hashed_ids_fill_the_known_rows_evenly_and_a_missing_one_stays_unknown() -> None:
    ids = np.concatenate([np.arange(-50_000, 50_000), [NULL_ID]])
    rows, unknown = row_ids(ids, 10, hash_seed=name_seed("item"))
    assert rows[-1] == 10
    assert unknown is not None
    assert unknown.sum() == 1
    counts = np.bincount(rows[:-1], minlength=11)
    assert counts[10] == 0
    assert abs(counts[:10] - 10_000).max() < 500  # five standard deviations of a fair share


def test_tables_fold_the_same_ids_differently() -> None:
    ids = np.arange(1000)
    first, _ = row_ids(ids, 100, name_seed("item"))
    second, _ = row_ids(ids, 100, name_seed("user"))
    assert 0 < (first == second).mean() < 0.05


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(1, 100), st.booleans())
def test_rows_are_always_in_the_table(ids: list[int], num_rows: int, hashed: bool) -> None:
    rows, unknown = row_ids(np.array(ids, np.int64), num_rows, 7 if hashed else None)
    assert ((0 <= rows) & (rows <= num_rows)).all()
    mask = np.zeros(len(ids), bool) if unknown is None else unknown
    assert ((rows == num_rows) == mask).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_sample_has_its_share_and_repeats(rate: float) -> None:
    rows = np.arange(100_000)
    kept = sample_rows(rows, rate, 3)
    assert abs(kept.mean() - rate) < 0.01
    assert (kept == sample_rows(rows, rate, 3)).all()
    assert (kept != sample_rows(rows, rate, 4)).any()
