"""What sequence modules learn of a world whose histories fade, from training to score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fidelity.correlation import STUDY, variants
from benchmarks.fidelity.study import recipe_of
from benchmarks.fidelity.training import run

ROWS = 200_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_tim_learns_the_planted_fading_and_one_without_time_does_not(tmp_path: Path) -> None:
    asked = {each.name: each for each in variants(ROWS)}
    study = replace(STUDY, variants=tuple(asked.values()))
    data = asked["TIM"].data.path(tmp_path)
    found = {
        name: run(study, recipe_of(study, asked[name], 1, data), 1)["metrics"]
        for name in ("TIM", "TIM without time")
    }
    assert found["TIM"]["correlation/categories"] > 0.9
    assert found["TIM"]["correlation/tables"] > 0.9
    assert found["TIM without time"]["correlation/categories"] == 0
    assert found["TIM without time"]["correlation/tables"] == 0
