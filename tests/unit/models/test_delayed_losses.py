"""Weights of conversions that come late, against numbers written out by hand (p = .2, p_dp = .05)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prismrec.config import UserError
from prismrec.models.objectives import Objective, Targets, TaskLoss, build_decoder, build_objective
from prismrec.models.objectives.delayed import (
    ElapsedTime,
    FakeNegativeWeighted,
    RealNegatives,
    Reweigh,
    importance,
    without_copies,
)
from tests.helpers.runs import make_recipe

P, P_DP = 0.2, 0.05
R = P_DP / P
P_RN = (1 - P) / (1 - P + P_DP)
RULES: dict[str, Reweigh] = {
    "fnw": FakeNegativeWeighted(),
    "es_dfm": ElapsedTime(1, 2),
    "defer": RealNegatives(1),
}
HEADS = {"fnw": [], "es_dfm": [P_DP, P_RN], "defer": [R]}
SHARE = {"fnw": P / (1 + P), "es_dfm": P / (1 + P_DP), "defer": P - P_DP / 2}


def logits_of(*probabilities: float, rows: int = 1) -> Tensor:
    return torch.logit(torch.tensor([probabilities], dtype=torch.float64)).repeat(rows, 1)


@pytest.mark.parametrize(
    ("name", "positive", "negative", "share"),
    [
        ("fnw", 1.2, 0.96, 0.1666667),
        ("es_dfm", 1.05, 0.9882353, 0.1904762),
        ("defer", 1.1428571, 0.9696970, 0.175),
    ],
)
def test_weights_at_the_truth(name: str, positive: float, negative: float, share: float) -> None:
    factors = RULES[name](logits_of(P, *HEADS[name]), 0)
    assert factors.positive.item() == pytest.approx(positive, abs=1e-7)
    assert factors.negative.item() == pytest.approx(negative, abs=1e-7)
    assert SHARE[name] == pytest.approx(share, abs=1e-7)
    assert not factors.positive.requires_grad


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("p", "r"), [(0.2, 0.25), (0.05, 0.8), (0.6, 0.5)])
def test_the_best_score_of_the_rows_that_a_rule_shows_is_the_truth(
    name: str, p: float, r: float
) -> None:
    """Weights of the present score, then the best score for them, from .5 on: it ends at p and stays."""
    p_dp = p * r
    heads = {"fnw": [], "es_dfm": [p_dp, (1 - p) / (1 - p + p_dp)], "defer": [r]}[name]
    q = {"fnw": p / (1 + p), "es_dfm": p / (1 + p_dp), "defer": p - p_dp / 2}[name]
    f = 0.5
    for _ in range(300):
        factors = RULES[name](logits_of(f, *heads), 0)
        up, down = q * factors.positive.item(), (1 - q) * factors.negative.item()
        f = up / (up + down)
    assert f == pytest.approx(p, abs=1e-6)


def test_a_wrong_head_moves_es_dfm_to_where_the_paper_says() -> None:
    """With p_rn = 1 the score is p / (p + p_neg f_rn), the share of positives that the stream shows."""
    factors = ElapsedTime(1, 2)(logits_of(P, P_DP, 1 - 1e-12), 0)
    q = SHARE["es_dfm"]
    odds = q * factors.positive / ((1 - q) * factors.negative)
    assert (odds / (1 + odds)).item() == pytest.approx(0.1904762, abs=1e-6)


def test_without_late_conversions_es_dfm_and_defer_are_cross_entropy() -> None:
    z = torch.tensor([[-1.0, -80.0, 80.0], [2.0, -80.0, 80.0]], dtype=torch.float64)
    for rule in (ElapsedTime(1, 2), RealNegatives(1)):
        factors = rule(z, 0)
        assert factors.positive.tolist() == pytest.approx([1, 1])
        assert factors.negative.tolist() == pytest.approx([1, 1])


def test_a_positive_of_defer_counts_between_once_and_twice() -> None:
    z = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    positive, negative = RealNegatives(1)(z, 0)
    assert 1 <= positive.min() <= positive.max() <= 2
    assert 0 <= negative.min() <= negative.max() <= 1


@pytest.mark.parametrize(("label", "expected"), [(1.0, 1.6664521524), (0.0, 0.2906036300)])
def test_the_loss_of_fnw_at_minus_one(label: float, expected: float) -> None:
    z = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    objective = Objective([TaskLoss(reweigh=FakeNegativeWeighted())], [1.0])
    one = torch.ones(1, 1, dtype=torch.float64)
    total, losses = objective(z, Targets(label * one, one, one))
    assert total.item() == pytest.approx(expected, abs=1e-10)
    f = 1 / (1 + math.e)
    factor = 1 + f if label else (1 - f) * (1 + f)
    total.backward()
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(factor * (f - label))  # none flows through the weight
    assert losses.weights.item() == pytest.approx(factor)
    assert objective.weighted == [0]


def test_rows_are_averaged_as_without_weights() -> None:
    """The sum of weighted losses over the rows, not over their weights."""
    z = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    ones = torch.ones_like(z)
    valid = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    objective = Objective([TaskLoss(reweigh=FakeNegativeWeighted())], [1.0])
    total, _ = objective(z, Targets(y, valid, ones))
    factors = importance(FakeNegativeWeighted(), z, y[:, 0], 0)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")[:, 0]
    assert total.item() == pytest.approx(((factors * losses)[:2].sum() / 2).item())


def test_fnc_is_served_as_the_probability_it_stands_for() -> None:
    b = torch.tensor([1 / 6, 0.25, 1 / 3, 0.5, 0.9], dtype=torch.float64)
    p = torch.sigmoid(without_copies(torch.logit(b)))
    assert p[:3].tolist() == pytest.approx([0.2, 1 / 3, 0.5])
    assert p[3:].tolist() == pytest.approx([1 - 1e-6] * 2, abs=1e-9)
    assert torch.isfinite(without_copies(torch.tensor([-60.0, 60.0]))).all()
    assert without_copies(torch.tensor([-60.0])).item() == pytest.approx(-60)


def test_recipes_name_the_tasks_that_watch_the_delays(tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path,
        "tasks=[{name='buy', label='buy', loss={name='es_dfm', late='a', real_negative='b'}},"
        " {name='a', label='click'}, {name='b', label='click'}, {name='c', label='buy', loss='fnc'}]",
    )
    objective = build_objective(recipe, 0)
    z = logits_of(P, P_DP, P_RN, 1 / 6, rows=2)
    y = torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 0]], dtype=torch.float64)
    _, losses = objective(z, Targets(y, torch.ones_like(y), torch.ones_like(y)))
    assert losses.weights[:, 0].tolist() == pytest.approx([1.05, 0.9882353], abs=1e-6)
    assert losses.weights[:, 1:].unique().tolist() == [1]
    served = torch.sigmoid(build_decoder(recipe).served(z.float()))
    assert served[0].tolist() == pytest.approx([P, P_DP, P_RN, 0.2], abs=1e-6)


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        (
            "[{name='buy', label='buy', loss={name='defer', late='lte'}}, {name='late', label='click'}]",
            r"tasks\[0\]\.loss\.late: no task 'lte'; .*late",
        ),
        (
            "[{name='buy', label='buy', loss={name='defer', late='buy'}}]",
            r"tasks\[0\]\.loss\.late: 'buy' is the task itself",
        ),
    ],
)
def test_what_a_recipe_gets_wrong(tmp_path: Path, tasks: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make_recipe(tmp_path, f"tasks={tasks}")
