"""Who may take an alias."""

from __future__ import annotations

import pytest

from prismrec.config import UserError
from prismrec.tracking.promotion import Rival, decide_promotion

OLD = Rival("ctr version 1", {"click/auc": 0.70, "click/logloss": 0.5, "click/pcoc": 1.1})


@pytest.mark.parametrize(
    ("metric", "value", "min_gain", "is_allowed"),
    [
        ("click/auc", 0.71, 0.005, True),
        ("click/auc", 0.70, 0.0, True),
        ("click/auc", 0.6999, 0.0, False),
        ("click/auc", 0.71, 0.02, False),
        ("click/auc", float("nan"), 0.0, False),
        ("click/logloss", 0.49, 0.005, True),
        ("click/logloss", 0.51, 0.0, False),
        ("click/pcoc", 0.95, 0.04, True),
        ("click/pcoc", 0.85, 0.0, False),
    ],
)
def test_the_better_one_passes(
    metric: str, value: float, min_gain: float, is_allowed: bool
) -> None:
    decision = decide_promotion(Rival("ctr version 2", {metric: value}), OLD, metric, min_gain)
    assert decision.is_allowed == is_allowed
    assert f"{value:.6f} against {OLD.metrics[metric]:.6f} of ctr version 1" in decision.reason


def test_the_first_one_passes() -> None:
    decision = decide_promotion(Rival("ctr version 1", {}), None, "click/auc", 0.1)
    assert decision.is_allowed


def test_a_holder_without_the_metric_stays() -> None:
    decision = decide_promotion(Rival("b", {"buy/auc": 0.8}), OLD, "buy/auc", 0.0)
    assert not decision.is_allowed
    assert "ctr version 1 has no 'buy/auc' to compare with" in decision.reason


def test_unknown_metrics_are_told() -> None:
    with pytest.raises(
        UserError, match=r"ctr version 1 has no test metric 'clik/auc'; did you mean"
    ):
        decide_promotion(OLD, OLD, "clik/auc", 0.0)
    odd = Rival("odd", {"click/count": 1.0})
    with pytest.raises(UserError, match=r"metric 'click/count': known: 'auc'"):
        decide_promotion(odd, odd, "click/count", 0.0)
