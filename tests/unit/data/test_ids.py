"""From ids to rows: every kind of ids, at both ends of the range and in between."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.data.collisions import expected_sharing
from prismrec.data.encode.encoders import (
    DirectEncoder,
    Encoder,
    HashEncoder,
    QuotientRemainderEncoder,
    TableRows,
    VocabularyEncoder,
    hash_seeds,
)
from prismrec.data.encode.ids import NULL_ID, Ints, mix64, name_seed, sample_rows

LEAST, MOST = -(2**63), 2**63 - 1


def vocabulary(known: list[int], unknown_rows: int = 1) -> VocabularyEncoder:
    """The id in place k of `known` has row k."""
    ids = np.array(known)
    order = np.argsort(ids)
    return VocabularyEncoder(TableRows(len(known), unknown_rows), ids[order], order, "")


def kinds(unknown_rows: int = 1) -> dict[str, Encoder]:
    """Encoders of 6 known ids or rows, with the rows' number of unknown ones."""
    six = TableRows(6, unknown_rows, seed=3)
    return {
        "direct": DirectEncoder(six),
        "hash": HashEncoder(six, (7,)),
        "two hashes": HashEncoder(six, hash_seeds(7, 2)),
        "quotient and remainder": QuotientRemainderEncoder(
            TableRows(5, unknown_rows, seed=3), num_ids=6, divisor=3
        ),
        "vocabulary": vocabulary([5, 0, 3, 1, 4, 2], unknown_rows),
    }


def looked_up(encoder: Encoder, ids: list[int]) -> tuple[list[list[int]], list[bool]]:
    """The rows of every id, and whether it is unknown."""
    given = np.array(ids, np.int64)
    rows, unknown = encoder(given)
    assert given.tolist() == ids, "what is given is not written to"
    mask = [False] * len(ids) if unknown is None else unknown.tolist()
    return rows.reshape(len(ids), encoder.rows_per_id).tolist(), mask


def test_known_ids_are_their_own_rows_and_are_not_copied() -> None:
    ids = np.array([0, 3, 4, 3])
    rows, unknown = DirectEncoder(TableRows(5))(ids)
    assert rows is ids
    assert unknown is None


@pytest.mark.parametrize("kind", kinds())
def test_both_ends_of_the_range(kind: str) -> None:
    """The last known id, the first unknown ones on both sides, and what int64 holds at most."""
    encoder = kinds()[kind]
    last = encoder.rows.total - 1
    rows, unknown = looked_up(encoder, [0, 5, 6, -1, MOST, LEAST])
    assert all(0 <= row <= last for each in rows for row in each)
    assert rows[5] == [last] * encoder.rows_per_id
    if "hash" in kind:
        assert unknown == [False] * 5 + [True]
        assert all(row < last for each in rows[:5] for row in each)
    else:
        assert unknown == [False, False, True, True, True, True]
        assert rows[2:] == [[last] * encoder.rows_per_id] * 4
        known = {
            "direct": [[0], [5]],
            "quotient and remainder": [[0, 2], [1, 4]],
            "vocabulary": [[1], [0]],
        }
        assert rows[:2] == known[kind]


@pytest.mark.parametrize("kind", ["direct", "quotient and remainder", "vocabulary"])
def test_unknown_ids_share_several_rows_and_missing_ones_have_the_last(kind: str) -> None:
    encoder = kinds(unknown_rows=4)[kind]
    first = encoder.rows.known
    rows, unknown = looked_up(encoder, [*range(100, 400), NULL_ID])
    assert all(unknown)
    assert rows[-1] == [first + 3] * encoder.rows_per_id
    shared = [each[0] for each in rows[:-1]]
    assert [each[-1] for each in rows[:-1]] == shared
    assert set(shared) == {first, first + 1, first + 2}
    assert min(shared.count(row) for row in set(shared)) > 70  # of 100, 3.7 deviations off
    assert looked_up(encoder, [100])[0] == rows[:1]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.one_of(st.integers(LEAST, MOST), st.integers(-9, 9)), max_size=40),
    st.integers(1, 4),
    st.sampled_from(list(kinds())),
)
def test_rows_are_always_in_the_table(ids: list[int], unknown_rows: int, kind: str) -> None:
    encoder = kinds(unknown_rows)[kind]
    rows, unknown = looked_up(encoder, ids)
    known = encoder.rows.known
    for each, is_unknown, id_ in zip(rows, unknown, ids, strict=True):
        assert all((row >= known) == is_unknown for row in each)
        assert all(0 <= row < encoder.rows.total for row in each)
        assert (each[0] == encoder.rows.total - 1) == (
            id_ == NULL_ID or (is_unknown and unknown_rows == 1)
        )


@pytest.mark.parametrize("kind", kinds())
def test_the_shape_of_the_ids_is_kept(kind: str) -> None:
    """Steps x rows of a block, also where they do not lie together, and bags of nothing."""
    encoder = kinds()[kind]
    ids = np.arange(-4, 20).reshape(2, 12)[:, 3:9]
    rows, unknown = encoder(ids)
    assert rows.shape == (2, 6 * encoder.rows_per_id)
    flat, mask = encoder(np.ascontiguousarray(ids).reshape(-1))
    assert rows.reshape(-1).tolist() == flat.tolist()
    assert (unknown is None) == (mask is None)
    if unknown is not None and mask is not None:
        assert unknown.tolist() == mask.reshape(2, 6).tolist()
    none, _ = encoder(np.zeros(0, np.int64))
    assert none.shape == (0,)


def test_mixing_gives_the_published_sequence_of_splitmix64() -> None:
    # The generator's first outputs from state 1234567, as its reference implementation prints them.
    golden = 0x9E3779B97F4A7C15
    states = np.array([1234567, (1234567 + golden) % 2**64], np.uint64)
    assert mix64(states, 0).tolist() == [6457827717110365317, 3203168211198807973]


def test_seed_0_is_splitmix64_itself() -> None:
    ids = np.array([0, 1, 2, 12345])
    mixed = [f"{each:016x}" for each in mix64(ids.view(np.uint64), 0).tolist()]
    assert mixed == ["e220a8397b1dcdaf", "910a2dec89025cc1", "975835de1c9756ce", "22118258a9d111a0"]
    rows, _ = HashEncoder(TableRows(1000), (0,))(ids)
    assert rows.tolist() == [535, 465, 110, 944]


def test_hashed_ids_fill_the_known_rows_evenly_and_a_missing_one_stays_unknown() -> None:
    ids = np.concatenate([np.arange(-50_000, 50_000), [NULL_ID]])
    rows, unknown = HashEncoder(TableRows(10), (name_seed("item"),))(ids)
    assert rows[-1] == 10
    assert unknown is not None
    assert unknown.sum() == 1
    counts = np.bincount(rows[:-1], minlength=11)
    assert counts[10] == 0
    assert abs(counts[:10] - 10_000).max() < 500  # five standard deviations of a fair share


def test_tables_fold_the_same_ids_differently() -> None:
    ids = np.arange(1000)
    first, _ = HashEncoder(TableRows(100), (name_seed("item"),))(ids)
    second, _ = HashEncoder(TableRows(100), (name_seed("user"),))(ids)
    assert 0 < (first == second).mean() < 0.05


STRUCTURED = {
    "dense": lambda n: np.arange(n),
    "only high bits": lambda n: np.arange(n) << 22,
    "spaced": lambda n: np.arange(n) * 10_000,
    "negative": lambda n: -np.arange(1, n + 1),
}
"""Ids with a structure that a remainder would not break up."""


@pytest.mark.parametrize("structure", STRUCTURED)
@pytest.mark.parametrize(
    ("load", "share"), [(0.1, 0.094), (0.5, 0.393), (1.0, 0.632), (3.0, 0.950)]
)
def test_as_many_ids_collide_as_chance_has_it(structure: str, load: float, share: float) -> None:
    rows = 10_000
    num_ids = int(load * rows)
    found, _ = HashEncoder(TableRows(rows), (name_seed("item"),))(STRUCTURED[structure](num_ids))
    users = np.bincount(found, minlength=rows)
    stay = (1 - 1 / rows) ** num_ids
    both = (1 - 2 / rows) ** num_ids
    deviation = math.sqrt(rows * stay + rows * (rows - 1) * both - (rows * stay) ** 2)
    assert abs((users > 0).sum() - rows * (1 - stay)) < 3 * deviation
    expected = expected_sharing(num_ids, rows, 1)
    assert expected_sharing(int(load * 1000), 1000, 1) == pytest.approx(share, abs=5e-4)
    # Ids that share a row come at least two at a time, so their number varies more than by itself.
    alone = (users == 1).sum()
    spread = math.sqrt(2 * num_ids * expected)
    assert abs(num_ids - alone - num_ids * expected) < 3 * spread


def test_two_hashes_hardly_ever_agree_on_two_ids() -> None:
    """Pairs of ids with the same two rows: a Poisson number, of mean 100 here."""
    rows, num_ids = 200, 2001
    found, _ = HashEncoder(TableRows(rows), hash_seeds(name_seed("item"), 2))(np.arange(num_ids))
    pairs = np.sort(found.reshape(num_ids, 2), axis=1)
    _, users = np.unique(pairs, axis=0, return_counts=True)
    meeting = int((users * (users - 1) // 2).sum())
    mean = num_ids * (num_ids - 1) / 2 * (2 / rows**2 - 1 / rows**3)
    assert mean == pytest.approx(99.8, abs=0.05)
    assert abs(meeting - mean) < 3 * math.sqrt(mean)
    one, _ = HashEncoder(TableRows(rows), hash_seeds(name_seed("item"), 1))(np.arange(num_ids))
    assert one.tolist() == found[::2].tolist(), "the first hash is that of a table with one"


def test_the_published_example_of_quotient_and_remainder() -> None:
    """Quotients (1, 2), (3, 4); remainders (1, -1), (0.5, 2), (2, 0); divisor 3."""
    table = np.array([[1, 2], [3, 4], [1, -1], [0.5, 2], [2, 0], [0, 0]])
    encoder = QuotientRemainderEncoder(TableRows(5), num_ids=6, divisor=3)
    rows, _ = encoder(np.array([4, 5]))
    vectors = table[rows.reshape(2, 2)].sum(axis=1)
    assert vectors.tolist() == [[3.5, 6], [5, 4]]


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 400), st.integers(2, 50))
def test_no_two_ids_share_quotient_and_remainder(num_ids: int, divisor: int) -> None:
    known = -(-num_ids // divisor) + divisor
    encoder = QuotientRemainderEncoder(TableRows(known), num_ids, divisor)
    rows, unknown = encoder(np.arange(num_ids))
    assert unknown is None
    pairs = rows.reshape(num_ids, 2)
    assert len({tuple(pair) for pair in pairs.tolist()}) == num_ids
    assert (pairs[:, 0] < known - divisor).all()
    assert ((known - divisor <= pairs[:, 1]) & (pairs[:, 1] < known)).all()


def test_a_vocabulary_takes_ids_of_any_value() -> None:
    encoder = vocabulary([7, MOST, -3, LEAST + 1])
    rows, unknown = looked_up(encoder, [-3, MOST, LEAST + 1, 7, 8, NULL_ID, MOST - 1, -4])
    assert rows == [[2], [1], [3], [0], [4], [4], [4], [4]]
    assert unknown == [False] * 4 + [True] * 4


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_sample_has_its_share_and_repeats(rate: float) -> None:
    rows: Ints = np.arange(100_000)
    kept = sample_rows(rows, rate, 3)
    assert abs(kept.mean() - rate) < 0.01
    assert (kept == sample_rows(rows, rate, 3)).all()
    assert (kept != sample_rows(rows, rate, 4)).any()
