"""`Evaluation` in one process against the functions on the same rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.train.metrics import (
    Evaluation,
    Resampling,
    bootstrap_auc,
    calibration_curve,
    sigmoid,
)
from tests.helpers.evaluation_rows import draw, expected, fill


def test_every_metric_equals_its_function():
    rows = draw(500)
    evaluation = Evaluation(["like", "finish"], ["domain"])
    fill(evaluation, rows, [0, 3, 3, 200, 500])
    found, wanted = evaluation.compute(), expected(rows, ["like", "finish"])
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=1e-12, rel=0)
    assert evaluation.compute() == found


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 40), st.integers(0, 1000), st.lists(st.integers(0, 40), max_size=4))
def test_batches_do_not_matter(size, seed, cuts):
    rows = draw(size, seed)
    once, often = (Evaluation(["a", "b"], ["domain"], bins=7) for _ in range(2))
    fill(once, rows, [0, size])
    fill(often, rows, [0, *sorted(min(cut, size) for cut in cuts), size])
    assert often.compute() == pytest.approx(once.compute(), abs=1e-12, rel=0, nan_ok=True)


def test_interval_and_curve_equal_their_functions():
    rows = draw(500)
    logits, labels, valid, weights, group, _ = (column.numpy() for column in rows)
    evaluation = Evaluation(["like", "finish"], ["domain"])
    fill(evaluation, rows, [0, 100, 500])
    kept = (valid * weights)[:, 1] > 0
    z, y, w = logits[kept, 1], labels[kept, 1], weights[kept, 1]
    drawn = Resampling(count=30, seed=4)
    assert evaluation.auc_interval("finish", drawn) == bootstrap_auc(z, y, w, None, drawn)
    assert evaluation.auc_interval("finish", drawn, by_group=True) == pytest.approx(
        bootstrap_auc(z, y, w, group[kept], drawn), abs=1e-14
    )
    found, wanted = evaluation.calibration_curve("finish", 10), calibration_curve(sigmoid(z), y, w)
    assert found.weight.size == 10
    np.testing.assert_allclose(found.predicted, wanted.predicted.reshape(10, 10).sum(axis=1))
    np.testing.assert_allclose(found.observed, wanted.observed.reshape(10, 10).sum(axis=1))


def test_a_task_without_rows_and_one_with_equal_labels_have_no_auc():
    ones = torch.ones(3, 2)
    evaluation = Evaluation(["empty", "constant"])
    valid = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    evaluation.update(ones, ones, valid, ones, torch.zeros(3, dtype=torch.int64))
    found = evaluation.compute()
    assert found["empty/rows"] == 0
    assert all(
        math.isnan(v) for k, v in found.items() if k.startswith("empty/") and "rows" not in k
    )
    assert {k for k, v in found.items() if k.startswith("constant/") and math.isnan(v)} == {
        f"constant/{name}" for name in ("auc", "gauc", "ne", "rig")
    }
    assert found["constant/logloss"] == pytest.approx(math.log1p(math.exp(-1)))


def test_a_nan_logit_is_seen_in_every_metric_of_its_task_alone():
    logits = torch.tensor([[0.1, 0.1], [math.nan, 0.2], [0.3, 0.3]])
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    domain = torch.tensor([0, 1, 0])
    evaluation = Evaluation(["broken", "sound"], ["domain"])
    evaluation.update(
        logits, labels, labels + 1 > 0, labels * 0 + 1, domain * 0, {"domain": domain}
    )
    found = evaluation.compute()
    assert {k for k, v in found.items() if not math.isnan(v) and k.startswith("broken")} == {
        "broken/rows",
        "broken/rows/domain=0",
        "broken/rows/domain=1",
        "broken/auc/domain=0",
        "broken/logloss/domain=0",
        "broken/pcoc/domain=0",
    }
    assert found["sound/auc"] == found["broken/auc/domain=0"] == 1


def test_half_precision_logits_and_no_groups():
    logits = torch.tensor([[0.5], [0.25], [-1.0]], dtype=torch.bfloat16)
    ones = torch.ones(3, 1)
    evaluation = Evaluation(["like"], grouped=False)
    evaluation.update(
        logits, torch.tensor([[1.0], [0.0], [1.0]]), ones, ones, torch.zeros(3).long()
    )
    found = evaluation.compute()
    assert found["like/auc"] == 0.5
    assert "like/gauc" not in found


def test_errors_name_slices_and_shapes():
    evaluation = Evaluation(["like"], ["domain"])
    ones, ids = torch.ones(3, 1), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"slices must be \['domain'\], got \['country'\]"):
        evaluation.update(ones, ones, ones, ones, ids, {"country": ids})
    with pytest.raises(ValueError, match=r"must have shape \(3, 1\), group and slices \(3,\)"):
        evaluation.update(ones, ones, ones, ones, ids, {"domain": ids[:2]})
    with pytest.raises(ValueError, match=r"must have shape \(3, 1\)"):
        evaluation.update(ones, ones[:, 0], ones, ones, ids, {"domain": ids})
