"""Contradictory pairs and what sets make of them, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.analysis.entanglement import (
    NUM_BINS,
    Contradictions,
    PairSample,
    contradictory_pairs,
    contrast,
    distances,
    diversity_index,
    in_medians,
    lengths,
    shared_edges,
    shares_of,
)

A = np.array([5.0, 1, 4, 2, 3])
B = np.array([1.0, 5, 2, 3, 4])


def test_distances_of_vectors() -> None:
    users = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    items = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert distances(users, items).tolist() == pytest.approx([5, 5**0.5, 2**0.5])
    opposite = distances(users, torch.tensor([[6.0, 8.0], [-3.0, 0.0], [1.0, 1.0]]), "cosine")
    assert opposite.tolist() == pytest.approx([0, 2, 1])
    assert distances(users, items).dtype == torch.float64


def test_lengths_are_distances_at_right_angles() -> None:
    users, items = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 4.0], [-1.0, -1.0]])
    assert lengths(users, items).tolist() == pytest.approx([5, 2])
    squares = distances(users, items).square()
    products = users.norm(dim=1) * items.norm(dim=1) * (1 - distances(users, items, "cosine"))
    torch.testing.assert_close(lengths(users, items).square() - 2 * products, squares)


def test_vectors_of_a_pair_are_equally_wide() -> None:
    with pytest.raises(ValueError, match=r"equally wide, got \(2, 3\) and \(2, 4\)"):
        distances(torch.zeros(2, 3), torch.zeros(2, 4))


def test_contradictory_pairs_of_five() -> None:
    pairs = contradictory_pairs(A, B)
    assert np.flatnonzero(pairs.far_in_first).tolist() == [0, 2]
    assert np.flatnonzero(pairs.far_in_second).tolist() == [1]


def test_of_equal_distances_the_earlier_is_nearer() -> None:
    pairs = contradictory_pairs(np.zeros(5), B)
    # Of A the far ones are 3 and 4 and the near ones 0 and 1; of B 1, 4 and 0, 2.
    assert np.flatnonzero(pairs.far_in_first).tolist() == []
    assert np.flatnonzero(pairs.far_in_second).tolist() == [1]


def test_the_number_of_far_pairs_is_rounded_down() -> None:
    rising = np.arange(7.0)
    pairs = contradictory_pairs(rising, -rising)  # 0.4 x 7 = 2.8
    assert np.flatnonzero(pairs.far_in_first).tolist() == [5, 6]
    assert np.flatnonzero(pairs.far_in_second).tolist() == [0, 1]


def test_diversity_index() -> None:
    assert diversity_index([A, B]) == pytest.approx(0.30)
    assert diversity_index([A, A * 7 + 1]) == 0.0
    many = np.random.default_rng(0).permutation(200_000).astype(float)
    other = np.random.default_rng(1).permutation(200_000).astype(float)
    assert diversity_index([many, -many]) == pytest.approx(0.4)
    assert diversity_index([many, other]) == pytest.approx(0.16, abs=0.002)
    # Of three sets, two of them alike: four of the six ordered pairs differ.
    assert diversity_index([many, many, -many]) == pytest.approx(0.4 * 4 / 6)
    with pytest.raises(ValueError, match="two sets or more, got 1"):
        diversity_index([A])


def test_contrast_by_hand() -> None:
    pairs = Contradictions(
        np.array([True, True, False, False, False]), np.array([False, False, True, True, False])
    )
    found = contrast(np.array([1.0, 4.0, 2.0, 4.0, 99.0]), pairs)
    assert found.means == (2.5, 3.0)
    assert found.medians == (2.5, 3.0)
    assert found.separation == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert found.wasserstein == pytest.approx(0.5)  # sorted: |1 - 2| and |4 - 4|, over two


def test_single_task_models_are_the_ends_of_the_scale() -> None:
    pairs = contradictory_pairs(A, B)
    assert contrast(A, pairs).separation == 1.0
    assert contrast(B, pairs).separation == 0.0


def test_no_contradictory_pair_gives_no_number() -> None:
    found = contrast(A, contradictory_pairs(A, A))
    assert np.isnan([*found.means, *found.medians, found.wasserstein, found.separation]).all()


def test_wasserstein_of_groups_of_unequal_size() -> None:
    pairs = Contradictions(np.arange(5) < 2, np.arange(5) >= 2)
    # Between 0 and 1: 1/2; between 1 and 2: |1/2 - 1/3|; between 2 and 3: |1/2 - 1|.
    found = contrast(np.array([0.0, 3.0, 1.0, 2.0, 2.0]), pairs)
    assert found.wasserstein == pytest.approx(1 / 2 + 1 / 6 + 1 / 2)
    apart = Contradictions(np.arange(4) < 2, np.arange(4) >= 2)
    assert contrast(np.array([0.0, 3.0, 4.0, 7.0]), apart).wasserstein == pytest.approx(4)


def test_medians_and_histograms() -> None:
    assert in_medians(np.array([1.0, 2.0, 6.0])).tolist() == [0.5, 1.0, 3.0]
    assert in_medians(np.zeros(3)).tolist() == [0, 0, 0]
    edges = shared_edges([np.array([0.0, 1.0]), np.array([5.0])])
    assert len(edges) == NUM_BINS + 1
    assert (edges[0], edges[-1]) == (0, 5)
    shares = shares_of(np.array([0.0, 1.0]), edges)
    assert (shares[0], shares[10], shares.sum()) == (0.5, 0.5, 1.0)
    assert shares_of(np.zeros(0), edges).tolist() == [0.0] * NUM_BINS


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(5, 60), scale=st.floats(0.1, 10))
def test_invariances(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    first, second, third = rng.random((3, count))
    pairs = contradictory_pairs(first, second)
    assert not (pairs.far_in_first & pairs.far_in_second).any()
    assert contradictory_pairs(second, first).far_in_first.tolist() == pairs.far_in_second.tolist()
    if pairs.far_in_first.any() and pairs.far_in_second.any():
        found, scaled = contrast(third, pairs), contrast(third * scale, pairs)
        assert scaled.separation == found.separation
        assert scaled.wasserstein == pytest.approx(scale * found.wasserstein)
        swapped = contrast(third, Contradictions(pairs.far_in_second, pairs.far_in_first))
        assert swapped.separation == pytest.approx(1 - found.separation)
        assert found.wasserstein >= abs(found.means[0] - found.means[1]) - 1e-12
    index = diversity_index([first, second, third])
    assert 0 <= index <= 0.4
    assert diversity_index([third * scale, first, second**2]) == pytest.approx(index)


def test_distinct_pairs_at_their_first_place() -> None:
    sample = PairSample()
    sample.update(np.array([3, 1, 3]), np.array([4, 1, 4]))
    sample.update(np.array([4, 1, 0]), np.array([3, 1, 0]))
    assert sample.places().tolist() == [0, 1, 3, 5]


def test_a_sample_of_pairs_depends_on_the_pairs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismrec.analysis.entanglement._PENDING", 64)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 3000), rng.integers(0, 25, 3000)

    def kept(order: np.ndarray, batch: int) -> set[tuple[int, int]]:
        sample = PairSample(most=100)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            sample.update(users[rows], items[rows])
            assert len(sample._keys) <= 100
        places = sample.places()
        assert len(places) == 100
        chosen = order[places]
        met = [(int(users[row]), int(items[row])) for row in order]
        first = [met.index((int(users[row]), int(items[row]))) for row in chosen]
        assert first == places.tolist()
        return set(zip(users[chosen].tolist(), items[chosen].tolist(), strict=True))

    rows = np.arange(3000)
    assert kept(rows, 50) == kept(rows[::-1], 7) == kept(rng.permutation(rows), 3000)


def test_kept_pairs_are_spread_evenly() -> None:
    sample = PairSample(most=2000)
    users, items = (each.ravel() for each in np.meshgrid(np.arange(200), np.arange(100)))
    sample.update(users, items)
    chosen = sample.places()
    assert items[chosen].mean() == pytest.approx(49.5, abs=2)
    assert users[chosen].mean() == pytest.approx(99.5, abs=4)


def test_rows_that_do_not_fit_a_pair() -> None:
    with pytest.raises(ValueError, match=r"rows below 2\^31, got 2147483648"):
        PairSample().update(np.array([2**31]), np.array([0]))
