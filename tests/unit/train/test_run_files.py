"""The directory of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from prismrec.config import Recipe, UserError
from prismrec.train.events import EventLog, read_events
from prismrec.train.metrics.calibration import CalibrationCurve
from prismrec.train.periods import PeriodFiles
from prismrec.train.run_files import RunFiles, latest_run, new_run
from tests.helpers.runs import make_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(
        tmp_path / "rows", f"out='{tmp_path / 'runs'}'", "embedding.layout='separate'"
    )


def test_a_new_run_holds_its_recipe(recipe: Recipe) -> None:
    first, second = new_run(recipe), new_run(recipe)
    assert first.directory != second.directory, "also within a second"
    assert first.directory.name.startswith("small-")
    assert first.read_recipe() == recipe
    assert (first.directory / "log").is_dir()
    assert first.log(3).parent == first.directory / "log"


def test_the_latest_run_is_found(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="--resume: no run of 'small' under .*leave --resume out"):
        latest_run(recipe)
    runs = [new_run(recipe), new_run(recipe)]
    for files, age in zip(runs, (10, 90), strict=True):
        os.utime(files.directory, (2e9 - age, 2e9 - age))
    Path(recipe.out, "small-of-something-else").mkdir()
    assert latest_run(recipe) == runs[0]


def test_mistakes_are_told(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run directory \(it has no recipe.json\)"):
        RunFiles(tmp_path).read_recipe()
    (tmp_path / "file").write_text("")
    blocked = recipe.model_copy(update={"out": str(tmp_path / "file" / "runs")})
    with pytest.raises(UserError, match="out: cannot make .*: Not a directory"):
        new_run(blocked)


def test_facts_add_up(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert files.facts() == {}
    files.record({"run": "a", "data": "b"})
    files.record({"data": "c"})
    assert files.facts() == {"run": "a", "data": "c"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_first_mistake_of_a_start_stays(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert files.read_error("one") == ""
    files.write_error("one", UserError("the cause"))
    files.write_error("one", UserError("what followed"))
    assert files.read_error("one") == "the cause"
    assert files.read_error("two") == ""


def test_curves_and_plan_are_json(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    curve = CalibrationCurve(*(np.array(values) for values in ([2.0, 3.0], [0.1, 0.5], [0.2, 0.4])))
    files.write_curves({"click": curve})
    assert json.loads(files.curves.read_text()) == {
        "click": {"weight": [2.0, 3.0], "predicted": [0.1, 0.5], "observed": [0.2, 0.4]}
    }
    files.write_plan([{"table": "user", "ranks": [0, 1]}])
    assert json.loads(files.plan.read_text()) == [{"table": "user", "ranks": [0, 1]}]


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """As a kill or a full disk leaves it, here where a part of it looks like a whole one."""
    windows, events = PeriodFiles(tmp_path), EventLog(tmp_path / "events.jsonl")
    for number in range(3):
        windows.append_slice({"slice": number, "metrics": {"auc": 0.5}})
        events.log_metrics({"loss": 0.5}, number)
        if number == 1:
            for path in (windows.slices, tmp_path / "events.jsonl"):
                os.truncate(path, path.stat().st_size - 2)  # behind the inner brace
    assert [each["slice"] for each in windows.read_slices()] == [0, 2]
    assert [each["step"] for each in read_events(tmp_path / "events.jsonl")] == [0, 2]


def test_a_record_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    windows = PeriodFiles(tmp_path / "away")
    with pytest.raises(UserError, match=r"windows\.jsonl: cannot be written: No such file"):
        windows.append_slice({"slice": 0})
