"""The score between a learned map and the data: its vectors and what must not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.analysis.correlation import min_max, score, spearman, tells_apart
from prismrec.analysis.pearson import pearson

PUBLISHED_TRUTH = [1, 0.48, 0.30, 0.27, 0.23, 0.22, 0.18, 0.19, 0.17, 0.12]
PUBLISHED_TIN = [1, 0.52, 0.28, 0.15, 0.11, 0.11, 0.09, 0.07, 0.06, 0.05]


def test_the_row_of_the_published_maps() -> None:
    found = pearson(np.array(PUBLISHED_TRUTH), np.array(PUBLISHED_TIN))
    assert found == pytest.approx(0.9895, abs=5e-5)
    assert spearman(np.array(PUBLISHED_TRUTH), np.array(PUBLISHED_TIN)) == pytest.approx(
        0.985, abs=1e-3
    )


def test_a_row_without_position_scores_nothing() -> None:
    truth = np.array(PUBLISHED_TRUTH)
    assert pearson(truth, np.full(10, 0.3), of_constant=0.0) == 0
    assert math.isnan(pearson(truth, np.full(10, 0.3)))
    # Rounding of float32 is no position.
    noise = np.full(10, 0.3, np.float32) * (1 + 1e-7 * np.arange(10, dtype=np.float32))
    assert pearson(truth, noise, of_constant=0.0) == 0
    assert pearson(truth, 0.3 * (1 + 1e-5 * np.arange(10, 0, -1))) != 0
    assert pearson(truth, np.zeros(10), of_constant=0.0) == 0


def test_unknown_cells_are_left_out() -> None:
    truth, learned = np.array([3.0, 2.0, 1.0, 9.0]), np.array([6.0, 4.0, 2.0, math.nan])
    assert pearson(truth, learned) == pytest.approx(1)
    assert math.isnan(pearson(truth[1:], learned[1:]))


def test_the_score_is_the_row_of_the_targets_own_category() -> None:
    truth = np.array([[[3.0, 2, 1], [1, 5, 9]], [[0, 7, 7], [1, 2, 4]]])
    learned = np.array([[[1.0, 2, 4], [1, 5, 9]], [[5, 1, 3], [1, 2, 4]]])
    found = score(truth, learned)
    assert found.own[0] == pytest.approx(-3 / math.sqrt(2 * 42 / 9))
    assert found.own[1] == pytest.approx(1)
    assert found.mean(1) == found.own[0]
    assert found.mean(2) == pytest.approx(found.own.mean())
    assert found.pearson[0] == pytest.approx(
        np.corrcoef(truth[0].ravel(), learned[0].ravel())[0, 1]
    )
    # Ranks 3 2 0.5 0.5 4 5 and 0.5 2 3 0.5 4 5: by hand, and not those of the values.
    first, second = [3, 2, 0.5, 0.5, 4, 5], [0.5, 2, 3, 0.5, 4, 5]
    assert found.spearman[0] == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert found.mean_pearson == pytest.approx(found.pearson.mean())
    assert found.mean_spearman == pytest.approx(found.spearman.mean())
    blind = learned.copy()
    blind[1] = math.nan
    assert score(truth, blind).mean(2) == found.own[0]


MAPS = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).random((2, 3, 3, 6)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(MAPS, st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_shift_do_not_matter(maps: np.ndarray, scale: float, shift: float) -> None:  # type: ignore[type-arg]
    truth, learned = maps
    plain = score(truth, learned)
    for other in (
        score(truth, learned * scale + shift),
        score(truth * scale + shift, learned),
        score(min_max(truth), min_max(learned)),
    ):
        for name in ("own", "pearson", "spearman"):
            np.testing.assert_allclose(getattr(other, name), getattr(plain, name), atol=1e-7)
    same = score(truth, truth)
    for name in ("own", "pearson", "spearman"):
        np.testing.assert_allclose(getattr(same, name), 1, atol=1e-12)
    opposite = score(truth, -truth)
    np.testing.assert_allclose(opposite.own, -1, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(MAPS)
def test_a_map_blind_to_position_scores_zero(maps: np.ndarray) -> None:  # type: ignore[type-arg]
    truth, learned = maps
    blind = np.repeat(learned[..., :1], 6, -1)
    assert (score(truth, blind).own == 0).all()


def test_rows_that_differ_by_chance_alone_are_rarely_told_apart() -> None:
    random = np.random.default_rng(0)
    errors = np.array([0.1, 0.2, 0.1, 0.3, 0.1, 0.2, 0.1, 0.3, 0.2, 0.1])
    draws = 5 + errors * random.standard_normal((20_000, 10))
    share = np.mean([tells_apart(each, errors) for each in draws])
    assert share == pytest.approx(0.01, abs=0.003)
    assert tells_apart(5 + np.arange(10) * 0.1, errors)
    assert not tells_apart(np.arange(10.0), np.zeros(10))
