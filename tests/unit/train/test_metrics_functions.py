"""AUC, GAUC, log loss, NE, RIG and PCOC against hand-computed numbers and pair counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.train.metrics import (
    auc,
    gauc,
    log_loss,
    normalized_entropy,
    pcoc,
    relative_information_gain,
    row_log_loss,
    sigmoid,
)

Y = np.array([1, 0, 1, 0, 0, 1])
P = np.array([0.9, 0.8, 0.7, 0.7, 0.2, 0.1])
Z = np.log(P / (1 - P))

rows = st.lists(
    st.tuples(
        st.integers(-4, 4),  # score: few values, many ties
        st.integers(0, 1),
        st.sampled_from([0.0, 0.25, 1.0, 1.5]),
        st.integers(0, 3),  # group
    ),
    min_size=1,
    max_size=30,
)
no_deadline = settings(derandomize=True, deadline=None, max_examples=60)


def columns(drawn):
    score, label, weight, group = (np.array(column) for column in zip(*drawn, strict=True))
    return score / 2.0, label, weight, group


def counted_auc(score, label, weight):
    """Every (positive, negative) pair, one by one."""
    won = total = 0.0
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            pair = weight[i] * weight[j]
            total += pair
            won += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return won / total if total > 0 else math.nan


def same(a, b, tolerance=1e-12):
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= tolerance


def test_the_vector_of_the_definitions():
    assert auc(P, Y) == 0.5
    assert auc(Z, Y) == 0.5
    assert log_loss(Z, Y) == pytest.approx(0.9668624701, abs=1e-10)
    assert normalized_entropy(Z, Y) == pytest.approx(1.3948876909, abs=1e-10)
    assert relative_information_gain(Z, Y) == pytest.approx(-0.3948876909, abs=1e-10)
    assert pcoc(P, Y) == pytest.approx(1.1333333333, abs=1e-10)
    assert auc(P, Y, [1, 2, 1, 1, 1, 0.5]) == pytest.approx(0.55, abs=1e-15)


def test_log_loss_is_in_nats():
    assert log_loss([0.0], [1]) == pytest.approx(math.log(2), abs=1e-15)


@pytest.mark.parametrize(
    ("groups", "group_weight", "expected"),
    [
        ([0, 0, 0, 1, 1, 1], "impressions", 0.25),
        ([0, 0, 1, 1, 1, 2], "impressions", 0.85),
        ([0, 0, 1, 1, 1, 2], "equal", 0.875),
        ([0, 0, 1, 1, 1, 2], "clicks", 0.875),
        ([7, 7, 7, 7, 7, 7], "impressions", 0.5),
        ([0, 1, 2, 3, 4, 5], "impressions", math.nan),
    ],
)
def test_gauc_weighs_groups_that_have_both_classes(groups, group_weight, expected):
    assert same(gauc(P, Y, groups, group_weight=group_weight), expected)


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], [1, 0, 1, 1, 0]])
def test_a_constant_predictor_has_auc_one_half_in_any_row_order(labels):
    assert auc(np.zeros(len(labels)), labels) == 0.5


def test_extreme_logits_stay_exact():
    logits = np.array([800.0, -800.0, 800.0, np.inf, -np.inf, np.inf])
    labels = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(row_log_loss(logits, labels), [0, 0, 800, 0, 0, np.inf])
    np.testing.assert_array_equal(sigmoid([-800.0, 0.0, 800.0, np.inf]), [0, 0.5, 1, 1])
    assert sigmoid(-50.0) == pytest.approx(math.exp(-50), rel=1e-15)
    assert auc(logits, labels) == 6.0 / 8


def test_half_a_label_is_half_a_positive_and_half_a_negative():
    soft = auc([0.3, 0.6, 0.9], [0.0, 0.5, 1.0])
    assert soft == auc([0.3, 0.6, 0.6, 0.9], [0, 0, 1, 1], [1, 0.5, 0.5, 1])


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_what_has_no_value_is_nan(labels):
    logits = np.arange(len(labels), dtype=float)
    assert math.isnan(auc(logits, labels))
    assert math.isnan(gauc(logits, labels, np.zeros(len(labels), int)))
    assert math.isnan(normalized_entropy(logits, labels))
    assert math.isnan(pcoc(sigmoid(logits), labels)) == (sum(labels) == 0)
    assert math.isnan(log_loss(logits, labels)) == (not labels)


def test_a_nan_score_makes_every_metric_nan():
    z = [0.1, math.nan, 0.2]
    for metric in (auc, log_loss, normalized_entropy, relative_information_gain, pcoc):
        assert math.isnan(metric(z, [0, 0, 1])), metric.__name__
    assert math.isnan(gauc(z, [0, 0, 1], [5, 6, 5]))


def test_errors_name_what_differs():
    with pytest.raises(ValueError, match=r"equal length, got shapes \(2,\), \(1,\) and \(2,\)"):
        auc([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="weights must be at least 0"):
        log_loss([0.1, 0.2], [0, 1], [1, -1])
    with pytest.raises(ValueError, match="groups must be 2 integers"):
        gauc([0.1, 0.2], [0, 1], [0.5, 1.5])


@no_deadline
@given(rows)
def test_auc_equals_the_count_over_pairs(drawn):
    score, label, weight, _ = columns(drawn)
    assert same(auc(score, label, weight), counted_auc(score, label, weight))


@no_deadline
@given(rows)
def test_gauc_equals_a_loop_over_groups(drawn):
    score, label, weight, group = columns(drawn)
    top = bottom = 0.0
    for one in np.unique(group):
        inside = group == one
        value = counted_auc(score[inside], label[inside], weight[inside])
        if not math.isnan(value):
            top += weight[inside].sum() * value
            bottom += weight[inside].sum()
    assert same(gauc(score, label, group, weight), top / bottom if bottom else math.nan)


@no_deadline
@given(rows, st.randoms(use_true_random=False))
def test_auc_sees_only_the_order_of_scores(drawn, random):
    score, label, weight, _ = columns(drawn)
    value = auc(score, label, weight)
    assert same(auc(np.exp(score) - 3, label, weight), value)
    assert same(auc(-score, label, weight), 1 - value)
    assert same(auc(score, 1 - label, weight), 1 - value)
    order = list(range(score.size))
    random.shuffle(order)
    assert same(auc(score[order], label[order], weight[order]), value)


@no_deadline
@given(rows)
def test_a_weight_of_two_is_the_row_twice(drawn):
    score, label, weight, group = columns(drawn)
    twice = [np.concatenate([column, column]) for column in (score, label, group, weight)]
    assert same(auc(score, label, 2 * weight), auc(twice[0], twice[1], twice[3]))
    assert same(gauc(score, label, group, 2 * weight), gauc(*twice))
    assert same(log_loss(score, label, 2 * weight), log_loss(twice[0], twice[1], twice[3]))


@no_deadline
@given(st.integers(1, 20), st.integers(1, 20))
def test_the_base_rate_as_a_constant_has_ne_one(positives, negatives):
    labels = np.repeat([1.0, 0.0], [positives, negatives])
    logits = np.full(labels.size, math.log(positives / negatives))
    assert normalized_entropy(logits, labels) == pytest.approx(1.0, abs=1e-12)
    assert relative_information_gain(logits, labels) == pytest.approx(0.0, abs=1e-12)
    assert pcoc(sigmoid(logits), labels) == pytest.approx(1.0, abs=1e-12)
