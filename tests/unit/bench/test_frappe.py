"""The study on Frappe: which run comes next, what is chosen on which rows, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.frappe import setting
from benchmarks.frappe.ours import recipe
from benchmarks.frappe.page import page, verdict
from benchmarks.frappe.setting import DIM, FIELDS, MODELS, PROGRAMS, SEEDS, grid
from benchmarks.frappe.study import Runs, chosen, complete, finals, next_job, read_runs, write_runs
from prismrec.models import build_model
from tests.unit.models.vectors import covering_all


def _result(valid: float, test: float) -> dict[str, Any]:
    losses = {"valid_logloss": 0.2, "test_logloss": 0.25, "epochs": 5, "seconds": 1.0}
    return {"valid_auc": valid, "test_auc": test, **losses}


def _complete(lead: float) -> Runs:
    """All runs; the second rates are the best on the validation rows and the worst in the test."""
    runs: Runs = {program: [] for program in PROGRAMS}
    for program in PROGRAMS:
        while job := next_job(runs, program):
            is_second = job["rate"] == grid(job["model"])[1]
            test = 0.9 + 0.001 * job["seed"] + (lead if program == "ours" else 0.0)
            result = _result(0.95, test) if is_second else _result(0.94, 0.99)
            runs[program].append(job | result)
    return runs


@pytest.mark.parametrize("program", PROGRAMS)
def test_runs_come_in_order_and_seeds_follow_the_choice(program: str) -> None:
    runs: Runs = {name: [] for name in PROGRAMS}
    model = MODELS[0]
    for n, rate in enumerate(grid(model)):
        job = {"model": model, "seed": SEEDS[0], "rate": rate}
        assert chosen(runs, program, model) is None
        assert next_job(runs, program) == job
        runs[program].append(job | _result(0.9 - 0.1 * n, 0))
    best = grid(model)[0]
    assert chosen(runs, program, model) == best
    assert next_job(runs, program) == {"model": model, "seed": SEEDS[1], "rate": best}


def test_nothing_is_chosen_on_the_test_rows() -> None:
    runs = _complete(0.0)
    for program in PROGRAMS:
        for model in MODELS:
            assert chosen(runs, program, model) == grid(model)[1]
            assert [each["seed"] for each in finals(runs, program, model)] == list(SEEDS)
            assert max(each["test_auc"] for each in finals(runs, program, model)) < 0.99


@pytest.mark.parametrize(
    ("lead", "word"), [(0.0005, "above"), (-0.0005, "within the spread"), (-0.0025, "below")]
)
def test_the_verdict_weighs_the_difference_by_the_spread(lead: float, word: str) -> None:
    assert verdict(_complete(lead), "fm") == word


def test_the_page_has_means_spreads_and_every_trial() -> None:
    facts = dict.fromkeys(("commit", "processor", "cores", "memory_gib", "python"), "x")
    machine = {**facts, "flags": [], "versions": {}}
    text = page({"command": "python -m it", "machine": machine, "runs": _complete(-0.0025)})
    assert "| fm | 0.9005 ± 0.0016 | 0.9030 ± 0.0016 | 0.2500 ± 0.0000 | " in text
    assert "| dcnv2 | FuxiCTR | 0.001: 0.9400 | 0.003: **0.9500** | 0.01: 0.9400 | 5 |" in text


def test_a_page_of_some_models_says_which_are_missing() -> None:
    runs = _complete(0.0)
    runs["ours"] = [each for each in runs["ours"] if each["model"] != MODELS[-1]]
    assert complete(runs) == list(MODELS[:-1])
    facts = dict.fromkeys(("commit", "processor", "cores", "memory_gib", "python"), "x")
    machine = {**facts, "flags": [], "versions": {}}
    text = page({"command": "python -m it", "machine": machine, "runs": runs})
    assert f"**Not complete**: {MODELS[-1]} are not done" in text
    assert f"| {MODELS[-1]} |" not in text


def test_runs_of_another_setting_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, runs = tmp_path / "runs.json", _complete(0.0)
    assert read_runs(cache) == {"ours": [], "fuxictr": []}
    write_runs(cache, runs)
    assert read_runs(cache) == runs
    monkeypatch.setattr(setting, "EPOCHS", setting.EPOCHS + 1)
    assert read_runs(cache) == {"ours": [], "fuxictr": []}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_recipe(model: str) -> None:
    job = {"model": model, "seed": 2, "rate": grid(model)[0]}
    built = recipe(Path("out/frappe"), job)
    assert built.seed == 2
    assert built.embedding.optimizer.name == "adam"
    assert built.embedding.optimizer.learning_rate == job["rate"]
    assert built.train.optimizer.learning_rate == job["rate"]
    fields = covering_all(len(FIELDS), 0, (DIM,), 1)
    assert sum(each.numel() for each in build_model(built.model, fields).parameters()) > 0
