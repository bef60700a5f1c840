"""State, schedule and coverage of the optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from prismrec.config.train import DenseOptimizer, Schedule
from prismrec.train.optimizers import Ema, dense_optimizer, flat_state, schedule_factor
from prismrec.train.state import TrainState, score


def test_cosine_decay_by_hand():
    schedule = Schedule(warmup_steps=2, decay="cosine", min_factor=0.1)
    assert schedule_factor(schedule, 0, 12) == 0.5
    assert schedule_factor(schedule, 2, 12) == 1.0
    assert schedule_factor(schedule, 7, 12) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule_factor(schedule, 12, 12) == pytest.approx(0.1)
    quarter = (1 + math.cos(math.pi / 4)) / 2
    longer = Schedule(decay="cosine", decay_steps=8)
    assert schedule_factor(longer, 2, 999) == pytest.approx(quarter)


def test_patience_counts_evaluations_without_a_better_one():
    state = TrainState()
    assert [state.judge(value, 2) for value in (0.5, 0.6, 0.55)] == [True, True, False]
    assert not state.stopped_early
    state.judge(0.6, 2)  # equal is not better
    assert state.stopped_early
    assert TrainState.from_json(state.to_json()) == state


def test_every_evaluation_that_was_not_the_best_counts_for_the_plateau():
    state = TrainState()
    seen = []
    for value in (0.5, 0.4, 0.6, 0.6, 0.7, 0.1):
        state.judge(value, None)
        seen.append(state.worse)
    assert seen == [0, 1, 1, 2, 2, 3]
    schedule = Schedule(warmup_steps=4, decay="plateau", plateau_factor=0.5, min_factor=0.3)
    factors = [
        schedule_factor(schedule, step, 10, worse) for step, worse in ((1, 1), (9, 1), (9, 3))
    ]
    assert factors == [0.5, 0.5, 0.3]  # a warm-up goes first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plateau_factor": 0.5}, "plateau_factor changes nothing with decay = 'none'"),
        ({"decay": "cosine", "plateau_factor": 0.5}, "plateau_factor .* 'cosine'"),
        ({"decay": "plateau", "decay_steps": 5}, "decay_steps .* 'plateau'"),
    ],
)
def test_what_a_schedule_would_not_hear_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(options)


def test_scores_are_larger_when_better():
    assert score("t/auc", 0.8) > score("t/auc", 0.7)
    assert score("t/logloss", 0.3) > score("t/logloss", 0.4)
    assert score("t/pcoc", 1.05) > score("t/pcoc", 0.8)


def test_average_of_the_weights_by_hand():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = Ema({"w": weight}, decay=0.75)
    with torch.no_grad():
        weight += 4.0
    ema.update()
    assert ema.averages["w"].tolist() == [2.0, 3.0]
    ema.swap()
    assert weight.tolist() == [2.0, 3.0]
    ema.swap()
    assert weight.tolist() == [5.0, 6.0]


def test_a_restored_state_goes_on_as_the_first_would_have():
    def run(steps, state=None, weight=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        names = {p: n for n, p in layer.named_parameters()}
        optimizer = dense_optimizer(layer, DenseOptimizer(weight_decay=0.1))
        flat = flat_state(optimizer, names)
        if state:
            layer.load_state_dict(weight)
            for key, value in state.items():
                flat[key].copy_(value)
        for step in steps:
            optimizer.zero_grad()
            (layer(torch.full((1, 3), float(step + 1))) ** 2).sum().backward()
            optimizer.step()
        flat = flat_state(optimizer, names)
        return {k: v.clone() for k, v in flat.items()}, {
            k: v.clone() for k, v in layer.state_dict().items()
        }

    state, weight = run(range(3))
    _, resumed = run(range(3, 5), state, weight)
    _, whole = run(range(5))
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_biases_are_spared_by_weight_decay():
    layer = torch.nn.Linear(3, 2)
    optimizer = dense_optimizer(layer, DenseOptimizer(weight_decay=0.5))
    decays = {
        tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
    }
    assert decays == {(2, 3): 0.5, (2,): 0.0}


def test_stacked_biases_and_norms_are_spared_too():
    from prismrec.models.layers import MLP

    stack = MLP(3, [4], copies=2, norm="layer")
    optimizer = dense_optimizer(stack, DenseOptimizer(weight_decay=0.5))
    names = {id(p): name for name, p in stack.named_parameters()}
    decayed = [
        names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]
    ]
    assert decayed == ["linears.0.weight"]
