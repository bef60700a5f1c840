"""Users by which task they lean to, and what a model gains on them, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prismrec.analysis.bucketed_gain import NUM_BUCKETS, bucketed_gain, leaning

NAN = np.nan


def test_users_by_their_positives() -> None:
    users = np.array([7, 7, 7, 9, 9, 9, 3, 3, 5])
    first = np.array([1, 0, 1, 0, NAN, 1, 0, 0, 1.0])
    second = np.array([1, 1, 0, 1, 1, 1, 0, NAN, NAN])
    # User 7 has 2 and 2: 1/2; 9 has 1 and 3: 1/4; 5 has 1 and 0: 1; 3 has none.
    found = leaning(users, first, second)
    # Middles of 1/4, 1/2 and 1 among three users: 1/6, 1/2 and 5/6.
    assert found.buckets.tolist() == [5, 5, 5, 1, 1, 1, -1, -1, 8]
    assert found.users.tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert found.ratios[[1, 5, 8]].tolist() == [0.25, 0.5, 1]
    assert np.isnan(found.ratios[0])


def test_users_of_one_ratio_stay_together() -> None:
    users = np.arange(10)
    first = np.array([1.0] * 6 + [0] * 4)
    found = leaning(users, first, 1 - first)
    # Four of ratio 0 around 0.2, six of ratio 1 around 0.7.
    assert found.buckets.tolist() == [7] * 6 + [2] * 4
    assert found.users.sum() == 10


def test_tenths_of_users_that_all_differ() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 401)
    place = np.tile(np.arange(401), 200)
    first = (place <= users).astype(float)
    found = leaning(users, first, 1.0 * (place > 200))
    assert found.users.tolist() == [20] * NUM_BUCKETS
    assert (np.diff(found.ratios) > 0).all()
    order = rng.permutation(len(users))
    shuffled = leaning(users[order], first[order], 1.0 * (place > 200)[order])
    assert shuffled.buckets.tolist() == found.buckets[order].tolist()


def test_gain_by_hand() -> None:
    buckets = np.array([0, 0, 0, 0, 4, 4, 4, -1, 9])
    labels = np.array([1, 0, 1, 0, 1, 0, NAN, 1, 1.0])
    model = np.array([4, 3, 2, 1, 1, 1, 9, 0, 0.0])
    alone = np.array([1, 3, 2, 4, 0, 1, 9, 0, 0.0])
    found = bucketed_gain(buckets, labels, model, alone)
    assert [(each.bucket, each.rows, each.positives) for each in found] == [
        (0, 4, 2),
        (4, 2, 1),
        (9, 1, 1),
    ]
    assert [each.model for each in found[:2]] == [0.75, 0.5]
    assert [each.alone for each in found[:2]] == [0, 0]
    assert [each.gain for each in found[:2]] == [0.75, 0.5]
    assert np.isnan(found[2].gain)


def test_nobody_with_a_positive() -> None:
    found = leaning(np.array([1, 2]), np.zeros(2), np.zeros(2))
    assert found.buckets.tolist() == [-1, -1]
    assert found.users.sum() == 0
    assert bucketed_gain(found.buckets, np.zeros(2), np.zeros(2), np.zeros(2)) == []


def test_one_model_gains_nothing_over_itself() -> None:
    rng = np.random.default_rng(1)
    buckets, labels, scores = rng.integers(0, 10, 500), rng.integers(0, 2, 500), rng.random(500)
    found = bucketed_gain(buckets, labels.astype(float), scores, scores * 3 - 1)
    assert [each.gain for each in found] == pytest.approx([0] * 10)
