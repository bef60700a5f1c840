"""Bootstrap intervals against DeLong's variance and against plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prismrec.train.metrics import Resampling, auc, bootstrap_auc, bootstrap_auc_difference
from prismrec.train.metrics.bootstrap import _POISSON


def draw(rows=600, seed=3):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    label = (rng.random(rows) < 1 / (1 + np.exp(1 - truth))).astype(int)
    good = np.round(truth + rng.normal(size=rows), 1)
    bad = np.round(truth + 2 * rng.normal(size=rows), 1)
    return good, bad, label


def placements(score, label):
    """For every row the share of the other class it is on the right side of (DeLong 1988)."""
    positive, negative = score[label == 1], score[label == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(axis=1), wins.mean(axis=0)


def delong_deviation(*scores, label):
    """Standard error of the AUC of one model, or of the difference of two."""
    parts = [placements(score, label) for score in scores]
    up, down = parts[0] if len(parts) == 1 else [a - b for a, b in zip(*parts, strict=True)]
    return math.sqrt(np.var(up, ddof=1) / up.size + np.var(down, ddof=1) / down.size)


def half_width(interval):
    return (interval[1] - interval[0]) / 2


def test_the_width_agrees_with_delong():
    good, bad, label = draw()
    resampling = Resampling(count=2000, seed=1)
    low, high = bootstrap_auc(good, label, resampling=resampling)
    assert low < auc(good, label) < high
    expected = 1.96 * delong_deviation(good, label=label)
    assert half_width((low, high)) == pytest.approx(expected, rel=0.1)

    low, high = bootstrap_auc_difference(good, bad, label, resampling=resampling)
    assert low < auc(bad, label) - auc(good, label) < high < 0
    expected = 1.96 * delong_deviation(good, bad, label=label)
    assert half_width((low, high)) == pytest.approx(expected, rel=0.1)


def test_groups_that_repeat_their_rows_widen_the_interval_as_fewer_rows_do():
    good, _, label = draw(rows=300)
    copies = 9
    score, labels = np.repeat(good, copies), np.repeat(label, copies)
    groups = np.repeat(np.arange(300) * 7 - 1000, copies)
    drawn = Resampling(count=2000)
    by_group = half_width(bootstrap_auc(score, labels, groups=groups, resampling=drawn))
    by_row = half_width(bootstrap_auc(score, labels, resampling=drawn))
    single = half_width(bootstrap_auc(good, label, resampling=drawn))
    assert by_group == pytest.approx(single, rel=0.1)
    assert by_group == pytest.approx(3 * by_row, rel=0.15)


def test_equal_models_do_not_differ_and_swapping_them_changes_the_sign():
    good, bad, label = draw()
    drawn = Resampling(count=100)
    assert bootstrap_auc_difference(good, good, label, resampling=drawn) == (0.0, 0.0)
    low, high = bootstrap_auc_difference(good, bad, label, resampling=drawn)
    swapped = bootstrap_auc_difference(bad, good, label, resampling=drawn)
    assert swapped == pytest.approx((-high, -low), abs=1e-15)


def test_seed_and_row_order():
    good, _, label = draw()
    first = bootstrap_auc(good, label, resampling=Resampling(count=50, seed=5))
    assert bootstrap_auc(good, label, resampling=Resampling(count=50, seed=5)) == first
    assert bootstrap_auc(good, label, resampling=Resampling(count=50, seed=6)) != first
    order = np.random.default_rng(0).permutation(good.size)
    shuffled = bootstrap_auc(good[order], label[order], resampling=Resampling(count=50, seed=5))
    assert shuffled == pytest.approx(first, abs=1e-14)


def test_rows_of_weight_zero_take_no_part():
    good, bad, label = draw(rows=100)
    weight = np.repeat([1.0, 0.0], 50)
    groups = np.arange(100) // 2
    drawn = Resampling(count=20)
    kept = slice(0, 50)
    assert bootstrap_auc(good, label, weight, groups, drawn) == bootstrap_auc(
        good[kept], label[kept], None, groups[kept], drawn
    )
    assert bootstrap_auc_difference(
        good, bad, label, weight, groups, drawn
    ) == bootstrap_auc_difference(good[kept], bad[kept], label[kept], None, groups[kept], drawn)


def test_draws_are_poisson_and_independent_between_resamples():
    counts = np.array(list(Resampling(count=9, seed=2).draws(np.arange(20_000))), dtype=float)
    assert counts.shape == (9, 20_000)
    assert _POISSON.mean() == pytest.approx(1, abs=1e-4)
    assert counts.mean(axis=1) == pytest.approx(np.ones(9), abs=0.04)
    assert counts.var(axis=1) == pytest.approx(np.ones(9), abs=0.06)
    assert np.bincount(counts.astype(int).ravel())[:3] / counts.size == pytest.approx(
        [math.exp(-1), math.exp(-1), math.exp(-1) / 2], abs=0.005
    )
    between = np.corrcoef(counts)[~np.eye(9, dtype=bool)]
    assert np.abs(between).max() < 0.03
    neighbours = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in counts]
    assert np.abs(neighbours).max() < 0.03


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
def test_no_interval_without_both_classes(labels):
    scores = np.arange(len(labels), dtype=float)
    assert np.isnan(bootstrap_auc(scores, labels)).all()
    assert np.isnan(bootstrap_auc_difference(scores, -scores, labels)).all()


def test_no_interval_with_a_nan_score():
    assert np.isnan(bootstrap_auc([0.1, math.nan, 0.3], [0, 0, 1])).all()


def test_errors():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        Resampling(count=0)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        Resampling(confidence=95)
    with pytest.raises(ValueError, match="groups must be 2 integers"):
        bootstrap_auc([0.1, 0.2], [0, 1], groups=[1])
