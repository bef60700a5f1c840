"""Residual quantisation by k-means: the specification's codes and errors, and what must hold of any fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.data.semantic.kmeans import (
    fit_centers,
    moved_centers,
    nearest,
    spread_centers,
    sums_by_code,
)
from prismrec.data.semantic.residual import decode, encode, fit_levels

FIRST = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
SECOND = torch.tensor([[0, 0], [0.25, 0], [0, 0.25], [-0.25, 0]], dtype=torch.float64)
BOOKS = [FIRST, SECOND, SECOND / 4]
INPUTS = torch.tensor([[0.9, 0.3], [-0.2, -1.1], [0.6, 0.55], [-0.8, 0.1]], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=seeded(seed))


def test_codes_and_errors_of_the_specification() -> None:
    """Section 5.8; items 1 and 3 collide."""
    codes, squares = encode(INPUTS, BOOKS)
    assert codes.tolist() == [[0, 2, 3], [3, 3, 1], [0, 2, 3], [1, 1, 2]]
    expected = [
        [0.9, 0.1, 0.0125, 0.00390625],
        [1.25, 0.05, 0.0125, 0.01015625],
        [0.6625, 0.4625, 0.25, 0.20390625],
        [0.65, 0.05, 0.0125, 0.00390625],
    ]
    torch.testing.assert_close(squares, torch.tensor(expected, dtype=torch.float64))


def test_a_vector_is_the_sum_of_the_centers_of_its_codes() -> None:
    codes, squares = encode(INPUTS, BOOKS)
    found = decode(codes, BOOKS)
    assert found[0].tolist() == [1 - 0.0625, 0.25]
    torch.testing.assert_close((INPUTS - found).square().sum(dim=1), squares[:, 3])
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)  # on the codes alone
    torch.testing.assert_close(decode(codes[:, :1], BOOKS), FIRST[codes[:, 0]])


def test_errors_never_rise_where_every_codebook_has_the_zero_vector() -> None:
    books = [torch.cat([torch.zeros(1, 5), drawn(7, 5, seed)]) for seed in range(4)]
    squares = encode(drawn(300, 5, 9), books)[1]
    assert (squares[:, 1:] <= squares[:, :-1] + 1e-6).all()
    assert (squares[:, 1:] < squares[:, :-1]).any()


def test_errors_of_a_fit_fall_by_level_as_in_the_specification() -> None:
    """N(0, I_8), n = 512, V = 16; its numbers are those of one seed, so ours are near, not equal."""
    vectors = drawn(512, 8)
    books = fit_levels(vectors, [16] * 4, seeded(1), 50)
    errors = encode(vectors, books)[1].mean(dim=0) / 8
    assert (errors[1:] < errors[:-1]).all()
    np.testing.assert_allclose(errors, [0.99538, 0.53877, 0.29184, 0.16095, 0.08840], rtol=0.06)


def test_the_nearest_center_is_that_of_all_distances() -> None:
    vectors, centers = drawn(1000, 6).double(), drawn(37, 6, 1).double()
    by_distance = torch.cdist(vectors, centers).argmin(dim=1)
    assert nearest(vectors, centers).tolist() == by_distance.tolist()
    doubled = torch.cat([centers, centers])
    assert nearest(vectors, doubled).max() < 37, "the first of equal centers"


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(1, 200), st.integers(0, 5))
def test_codes_depend_neither_on_order_nor_on_batches(rows: int, seed: int) -> None:
    vectors = drawn(rows, 6, seed).double()
    books = [drawn(8, 6, seed + 1).double(), drawn(8, 6, seed + 2).double() / 2]
    codes = encode(vectors, books)[0]
    order = torch.randperm(rows, generator=seeded(seed))
    assert torch.equal(encode(vectors[order], books)[0], codes[order])
    parts = torch.cat([encode(part, books)[0] for part in vectors.split(7)])
    assert torch.equal(parts, codes)


def test_sums_by_code() -> None:
    sums, counts = sums_by_code(INPUTS, torch.tensor([2, 0, 2, 0]), 3)
    assert counts.tolist() == [2, 0, 2]
    torch.testing.assert_close(
        sums, torch.tensor([[-1.0, -1.0], [0, 0], [1.5, 0.85]], dtype=torch.float64)
    )


def test_a_step_moves_centers_to_means_and_restarts_the_dead() -> None:
    vectors = torch.tensor([[0.0], [1], [10], [30]])
    codes = torch.tensor([0, 0, 2, 2])
    moved = moved_centers(vectors, codes, torch.tensor([[0.4], [-50], [19], [-60]]))
    assert moved.flatten().tolist() == [0.5, 10.0, 20.0, 30.0]  # the two farthest, in order


def test_a_dead_center_stays_where_nothing_is_left_to_move_to() -> None:
    vectors = torch.tensor([[1.0], [1], [2]])
    moved = moved_centers(vectors, torch.tensor([0, 0, 1]), torch.tensor([[1.0], [2], [7]]))
    assert moved.flatten().tolist() == [1.0, 2.0, 7.0]


def test_no_step_makes_the_error_larger() -> None:
    vectors = drawn(400, 4)
    centers, errors = spread_centers(vectors, 12, seeded(3)), []
    for _ in range(15):
        codes = nearest(vectors, centers)
        errors.append(float((vectors - centers[codes]).square().sum()))
        centers = moved_centers(vectors, codes, centers)
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_separate_clusters_are_found() -> None:
    """Eight clusters far apart: one center in each, wherever the seed begins."""
    middles = 100 * drawn(8, 3, 5)
    vectors = (middles[:, None] + drawn(8 * 50, 3).view(8, 50, 3)).flatten(0, 1)
    for seed in range(3):
        centers = fit_centers(vectors, 8, seeded(seed), 50)
        found = centers[nearest(middles, centers)]
        torch.testing.assert_close(found, vectors.view(8, 50, 3).mean(dim=1), rtol=1e-4, atol=1e-3)


def test_beginning_centers_are_vectors_far_from_each_other() -> None:
    vectors = torch.cat([torch.zeros(1000, 2), torch.tensor([[100.0, 0], [0, 100]])])
    centers = spread_centers(vectors, 3, seeded(0))
    assert sorted(centers.sum(dim=1).tolist()) == [0, 100, 100]
    same = spread_centers(torch.ones(5, 2), 3, seeded(0))
    assert same.tolist() == [[1, 1]] * 3


def test_a_fit_is_the_same_for_a_seed_and_another_for_another() -> None:
    vectors = drawn(300, 5)
    first, again, other = (fit_levels(vectors, [8, 8], seeded(s), 20) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("rows", [16, 17])
def test_as_many_codes_as_vectors_code_each_exactly(rows: int) -> None:
    vectors = drawn(rows, 3)
    codes, squares = encode(vectors, fit_levels(vectors, [rows], seeded(0), 50))
    assert len(set(codes.flatten().tolist())) == rows
    torch.testing.assert_close(squares[:, 1], torch.zeros(rows))
