"""Losses, rates and shares of a few steps, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.models.objectives import Losses, build_objective
from prismrec.train import meter as meter_module
from prismrec.train.meter import Meter
from prismrec.train.model import Output
from prismrec.train.process_group import Ranks
from tests.helpers.runs import make_recipe


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module.time, "perf_counter", clock)
    return clock


def new_meter(every: int = 2, total_steps: int = 5) -> Meter:
    recipe = make_recipe(Path("nowhere"), f"train.log_every={every}")
    ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
    return Meter(recipe, build_objective(recipe, 0), ranks, total_steps)


def output(loss: float, click: float, buy: float) -> Output:
    losses = Losses(torch.tensor([click, buy]), torch.empty(0), torch.ones(4, 2))
    return Output(torch.tensor(loss), losses, torch.zeros(4, 2))


def test_a_reading_is_the_mean_since_the_one_before(clock: Clock) -> None:
    meter = new_meter()
    meter.add(output(1.0, 0.5, 0.25), rows=16, waited_s=0.5)
    meter.add(output(3.0, 1.5, 0.75), rows=8, waited_s=0.25)
    clock.now += 3
    assert meter.read() == {
        "train/loss": 2.0,
        "train/click/loss": 1.0,
        "train/buy/loss": 0.5,
        "train/examples_per_second": 24 / 3,
        "train/data_wait": 0.25,
    }
    meter.add(output(7.0, 6.0, 5.0), rows=10, waited_s=9.0)
    clock.now += 2
    second = meter.read()
    assert (second["train/loss"], second["train/examples_per_second"]) == (7.0, 5.0)
    assert second["train/data_wait"] == 1.0, "no more than all of the time"
    assert meter.examples_per_second() == 34 / 5
    assert meter.steps == 3


def test_a_pause_is_not_training_time(clock: Clock) -> None:
    meter = new_meter()
    meter.add(output(1, 1, 1), rows=30, waited_s=0)
    clock.now += 2
    with meter.paused():
        clock.now += 50
    clock.now += 1
    assert meter.examples_per_second() == 10
    assert meter.read()["train/examples_per_second"] == 10


def test_readings_are_due_at_the_cadence_and_at_the_end() -> None:
    meter = new_meter(every=2, total_steps=5)
    assert [step for step in range(1, 6) if meter.is_due(step)] == [2, 4, 5]
