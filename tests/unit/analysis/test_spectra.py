"""Vectors and invariances of the singular spectra."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.analysis.spectra import (
    GRAM_FLOOR,
    Spectrum,
    centred_spectrum,
    gram,
    pair_abundance,
    set_variation,
    spectrum,
    spectrum_of_gram,
)
from tests.unit.models.vectors import drawn

T = drawn((6, 3), 3, 1)


def _diagonal(*values: float, rows: int) -> torch.Tensor:
    matrix = torch.zeros(rows, len(values), dtype=torch.float64)
    for at, value in enumerate(values):
        matrix[at, at] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "abundance", "rank_me"),
    [
        (_diagonal(3, 2, 1, rows=4), 2.0, 2.749459),
        (torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])), 1.0, 1.0),
        (torch.eye(5), 5.0, 5.000002),
        (T, 2.182321, 2.853981),
    ],
)
def test_vectors(matrix: torch.Tensor, abundance: float, rank_me: float) -> None:
    for found in (spectrum(matrix), spectrum_of_gram(gram(matrix), len(matrix))):
        assert found.information_abundance == pytest.approx(abundance, abs=2e-6)
        assert found.rank_me == pytest.approx(rank_me, abs=3e-6)


def test_the_spectrum_of_a_known_matrix() -> None:
    expected = torch.tensor([0.999714, 0.735958, 0.446025], dtype=torch.float64)
    torch.testing.assert_close(spectrum(T).sigma, expected, atol=1e-6, rtol=0)
    scaled = T.double() * torch.tensor([1.0, 0.1, 0.0])
    assert spectrum(scaled).information_abundance == pytest.approx(1.086285, abs=1e-6)
    found = spectrum(_diagonal(3, 2, 1, rows=4))
    assert found.stable_rank == pytest.approx(14 / 9)
    assert found.nuclear_norm == pytest.approx(6)
    assert [found.dimensions(share) for share in (0.5, 9 / 14, 0.7, 1.0)] == [1, 1, 2, 3]
    assert found.normalised().tolist() == pytest.approx([0, math.log(2 / 3), -math.log(3)])


def test_sub_embeddings_of_a_pair() -> None:
    block = drawn((2, 12, 12), 2, 1)[0]
    # DCN-v2's block (1, 0) of fields of width 3: rows of field 1, columns of field 0
    weight = block[3:6, 0:3]
    expected = torch.tensor([[0.2, 0.4, -0.5], [0.4, -0.5, -0.3], [-0.5, -0.3, -0.1]])
    torch.testing.assert_close(weight.double(), expected.double(), atol=1e-6, rtol=0)
    pairs = pair_abundance({"a": T, "b": T * 2}, {("a", "b"): weight.t(), ("b", "a"): torch.eye(3)})
    assert float(pairs.values[0, 1]) == pytest.approx(1.990196, abs=1e-6)
    assert float(pairs.values[1, 0]) == pytest.approx(2.182321, abs=1e-6)
    assert bool(pairs.values.diagonal().isnan().all())
    assert pairs.of_sources().tolist() == pytest.approx([1.990196, 2.182321], abs=1e-6)
    assert pairs.of_partners().tolist() == pytest.approx([2.182321, 1.990196], abs=1e-6)


def test_variation_between_sets() -> None:
    assert set_variation(T, drawn((6, 3), 5, 4)) == pytest.approx(0.362044, abs=1e-6)
    assert set_variation(T, T.double() @ torch.eye(3).flip(0).double() * 7) == pytest.approx(
        0, abs=1e-9
    )


def test_noise_spans_almost_everything() -> None:
    noise = torch.randn(10_000, 10, generator=torch.Generator().manual_seed(0))
    assert 9.6 < spectrum(noise).information_abundance < 9.9


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(4, 12), scale=st.floats(0.01, 100))
def test_invariances(seed: int, rows: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, 4, dtype=torch.float64, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    found = spectrum(matrix)
    assert 1 <= found.information_abundance <= 4
    padded = torch.cat([matrix, torch.zeros(3, 4, dtype=torch.float64)])
    shuffled = matrix[torch.randperm(rows, generator=generator)]
    for same in (matrix * scale, matrix @ turn, shuffled, padded, torch.cat([matrix, matrix])):
        assert spectrum(same).information_abundance == pytest.approx(found.information_abundance)
        assert spectrum(same).rank_me == pytest.approx(found.rank_me)
    twice = spectrum(torch.cat([matrix, matrix], 1))
    assert twice.information_abundance == pytest.approx(found.information_abundance)


def test_weights_stand_for_repeated_rows() -> None:
    repeated = T.repeat_interleave(torch.tensor([1, 2, 0, 3, 1, 1]), dim=0)
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 1.0])
    torch.testing.assert_close(gram(T, weights), gram(repeated))


@pytest.mark.parametrize(("ratio", "is_seen"), [(1e-3, True), (1e-6, True), (1e-9, False)])
def test_what_a_gram_matrix_can_and_cannot_see(ratio: float, is_seen: bool) -> None:
    """Squares: 1e-9 of the largest value is 1e-18 of its square, below what fp64 holds."""
    left = torch.linalg.qr(drawn((8, 3), 7, 2).double())[0]
    right = torch.linalg.qr(drawn((3, 3), 5, 1).double())[0]
    matrix = left @ torch.diag(torch.tensor([1.0, 0.5, ratio], dtype=torch.float64)) @ right
    exact, squared = spectrum(matrix), spectrum_of_gram(gram(matrix), 8)
    assert float(exact.sigma[2]) == pytest.approx(ratio, rel=1e-4)
    if is_seen:
        assert float(squared.sigma[2]) == pytest.approx(ratio, rel=1e-3)
    else:
        assert float(squared.sigma[2]) == 0.0
        assert ratio < GRAM_FLOOR


def test_zeros_have_no_shape() -> None:
    found = spectrum_of_gram(gram(torch.zeros(5, 3)), 5)
    assert found.is_zero
    assert (found.information_abundance, found.rank_me, found.stable_rank) == (0, 0, 0)
    assert found.dimensions(0.9) == 0
    assert Spectrum(torch.zeros(0, dtype=torch.float64), 0).is_zero


def test_few_rows_bound_the_dimensions() -> None:
    found = spectrum(torch.eye(8)[:3])
    assert (found.bound, len(found.sigma)) == (3, 8)
    assert found.information_abundance == pytest.approx(3)
    assert found.rank_me == pytest.approx(3, abs=1e-5)


def test_a_common_direction_vanishes_when_centred() -> None:
    samples = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
    assert float(centred_spectrum(samples).sigma[0]) == pytest.approx(math.sqrt(2))
    assert centred_spectrum(samples).information_abundance == pytest.approx(1)


def test_of_numbers_that_are_not_finite_nothing_is_known() -> None:
    matrix = torch.randn(20, 4)
    matrix[3, 1] = torch.inf
    found = spectrum_of_gram(gram(matrix), 20)
    assert not found.is_finite
    assert not found.is_zero
    assert math.isnan(found.information_abundance)
    assert math.isnan(found.rank_me)
