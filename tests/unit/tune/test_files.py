"""Trials as their directories have them, and which of them is the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import Recipe, UserError
from prismrec.jobs.tune.files import Evaluations, SearchFiles, Trial, latest_search, new_search
from prismrec.jobs.tune.search import best_of
from prismrec.jobs.tune.space import Dimension
from prismrec.tracking.plots import TrialPoints, plot_trials
from prismrec.train.events import EventLog
from tests.unit.data import small

SPACE = (Dimension("embedding.dim", "choice", (4, 8)),)


def recipe(tmp_path: Path, **more: object) -> Recipe:
    return small.recipe(tmp_path / "rows").model_copy(
        update={"out": str(tmp_path / "runs"), **more}
    )


def log(path: Path, *evaluations: tuple[int, float]) -> None:
    events = EventLog(path)
    for step, value in evaluations:
        events.log_metrics({"train/loss": 1.0}, step)
        events.log_metrics({"valid/click/auc": value}, step)


def test_evaluations_are_read_once_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    found = Evaluations(path, "click/auc")
    assert found.new() == []
    log(path, (10, 0.5), (20, 0.6))
    assert found.new() == [(10, 0.5), (20, 0.6)]
    assert found.new() == []
    log(path, (30, float("nan")))  # an evaluation whose metric has no value
    with path.open("a") as file:
        file.write('{"event": "metrics", "step": 40, "val')  # a line that a killed process left
    assert found.new() == []
    with path.open("a") as file:
        file.write("\n")
    log(path, (20, 0.1), (50, 0.7))  # it went on from step 10, so that step 20 comes again
    assert found.new() == [(50, 0.7)]


def test_trials_stand_as_their_runs_say(tmp_path: Path) -> None:
    search = new_search(recipe(tmp_path), SPACE, [{"embedding.dim": 4}, {"embedding.dim": 8}])
    search.add_trials([recipe(tmp_path), recipe(tmp_path)])
    log(search.trial(1).events, (10, 0.5), (20, 0.7), (30, 0.6))
    search.trial(1).record({"run": "r1", "state": "stopped"})
    assert search.trials() == [
        Trial(0, {"embedding.dim": 4}, "waiting", None, None, 0, "", ""),
        Trial(1, {"embedding.dim": 8}, "stopped", 0.7, 20, 3, "r1", ""),
    ]


def test_the_best_is_the_best_of_those_that_came_to_their_end() -> None:
    def trial(number: int, state: str, best: float | None) -> Trial:
        return Trial(number, {}, state, best, 1, 1, "", "")  # type: ignore[arg-type]

    trials = [trial(0, "finished", 0.6), trial(1, "finished", 0.7), trial(2, "stopped", 0.9)]
    assert best_of(trials, "click/auc") == trials[1]
    assert best_of(trials, "click/logloss") == trials[0]
    assert best_of([trial(0, "failed", 0.9), trial(1, "finished", None)], "click/auc") is None


def test_a_search_is_resumed_with_what_it_was_started_with(tmp_path: Path) -> None:
    values = [{"embedding.dim": 4}]
    with pytest.raises(UserError, match=r"no run"):
        latest_search(recipe(tmp_path), SPACE, values)
    search = new_search(recipe(tmp_path), SPACE, values)
    assert latest_search(recipe(tmp_path), SPACE, values) == SearchFiles(search.directory)
    for other, message in (
        ((recipe(tmp_path, seed=9), SPACE, values), r"the recipe differ from those of the search"),
        (
            (recipe(tmp_path), (Dimension("embedding.dim", "int", (4, 8)),), values),
            r"--space differ",
        ),
        (
            (recipe(tmp_path), SPACE, values * 2),
            r"--trials differ .*; resume with the same or start",
        ),
    ):
        with pytest.raises(UserError, match=message):
            latest_search(*other)


def test_a_plot_has_a_panel_for_every_key(tmp_path: Path) -> None:
    points = [
        TrialPoints(
            "train.optimizer.learning_rate", [(1e-4, 0.6, "finished"), (1e-2, 0.7, "stopped")]
        ),
        TrialPoints("model.hidden", [([8], 0.6, "finished"), ([16, 8], 0.7, "stopped")]),
    ]
    content = plot_trials(points, "click/auc", tmp_path / "trials.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[n : n + 4], "big") for n in (16, 20))
    assert width > 1.5 * height
