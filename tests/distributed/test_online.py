"""A stream trained window by window: every row once, in time, whatever stops the run."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from prismrec.checkpoint.manifest import read_manifest
from prismrec.data.arrivals import Arrivals
from prismrec.data.windows import Position, Slice
from prismrec.jobs.evaluate import measure
from prismrec.jobs.publish import bundle_of_checkpoint
from prismrec.serving.inference import InferenceModel
from prismrec.train import online
from prismrec.train.online import windowed
from prismrec.train.watchdog import EXIT_CODE
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import write_rows
from tests.helpers.streams import (
    OnlineStart,
    Streamed,
    at_times,
    begin_stream,
    deliver,
    keys_trained,
    rows_of,
    slices_of,
    stream_each,
    stream_recipe,
)


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "small")


@pytest.fixture
def stream(like: Path, tmp_path: Path) -> Path:
    """327 rows two apart in files of 40: windows of 50 rows, of which files straddle the ends."""
    rows = rows_of(like)
    at = begin_stream(tmp_path / "stream", like)
    for number in range(0, 320, 40):
        deliver(at, f"part-{number:03d}", rows.slice(number, 40))
    return at


def on_ranks(count: int, *starts: OnlineStart) -> list[Streamed]:
    if count == 1:
        return stream_each(starts)
    results: list[Streamed] = run_ranks(stream_each, count, starts, timeout_s=240)[0]
    return results


def test_windows_are_in_time_and_every_row_once(stream: Path, tmp_path: Path) -> None:
    recipe = stream_recipe(stream)
    (done,) = stream_each([OnlineStart(recipe, tmp_path / "run")])
    keys = keys_trained(tmp_path / "run", done.outcome.checkpoint, recipe)
    assert keys == [list(range(low, min(low + 50, 320))) for low in range(0, 320, 50)]
    outcome = done.outcome
    assert (outcome.windows, outcome.rows, outcome.late_files) == (7, 320, 0)
    assert outcome.steps == 6 * 4 + 2  # 16 rows a step: 50 rows are 4 steps, the last 20 are 2
    assert done.log["window/rows"] == {0: 50, 4: 50, 8: 50, 12: 50, 16: 50, 20: 50, 24: 20}


def test_a_window_is_evaluated_by_a_model_that_has_not_seen_it(
    stream: Path, tmp_path: Path
) -> None:
    """The metrics of the third window are those of the checkpoint after the second, on its rows."""
    recipe = stream_recipe(stream, "checkpoint.keep_last=20")
    run = tmp_path / "run"
    stream_each([OnlineStart(recipe, run)])
    third = slices_of(run)[2]
    assert third["step"] == 8
    part = Slice("window", third["start"], third["stop"], third["files"])
    source = Arrivals(recipe.data.path, "at").source(part.files)
    bundle = bundle_of_checkpoint(run / "checkpoints" / "step-00000008", tmp_path / "model")
    metrics, rows = measure(
        InferenceModel.load(bundle), windowed(recipe, part), source, "valid", lambda *_: None
    )
    assert rows == 50
    for name in ("click/auc", "click/logloss", "buy/logloss"):
        assert third["metrics"][name] == pytest.approx(metrics[name], abs=1e-6)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("step", "in_window"), [(4, None), (6, 100)])
def test_killed_and_resumed_it_ends_as_if_undisturbed(
    stream: Path, tmp_path: Path, ranks: int, step: int, in_window: int | None
) -> None:
    """What is left of a run that was killed before or in its second window, which is steps 5 to 8."""
    recipe = stream_recipe(stream, "checkpoint={every_steps = 2, keep_last = 20}")
    (whole,) = stream_each([OnlineStart(recipe, tmp_path / "whole")])
    killed = tmp_path / "killed"
    saved = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(saved, killed / "checkpoints" / saved.name)
    shutil.copy(tmp_path / "whole" / "windows.jsonl", killed)
    position = Position.from_json(read_manifest(saved).extra["beside"])
    assert (position.current.start if position.current else None) == in_window
    assert position.windows == 1
    (rest,) = on_ranks(ranks, OnlineStart(recipe, killed, "two"))
    losses = whole.log["train/loss"]
    assert rest.log["train/loss"] == pytest.approx(
        {at: loss for at, loss in losses.items() if at > step}, abs=1e-5
    )
    keys = keys_trained(killed, rest.outcome.checkpoint, recipe)
    assert sorted(sum(keys, [])) == list(range(320))
    assert (rest.outcome.windows, rest.outcome.steps) == (7, whole.outcome.steps)


def test_a_stop_request_saves_and_the_run_goes_on_from_there(stream: Path, tmp_path: Path) -> None:
    recipe, at = stream_recipe(stream), tmp_path / "run"
    (first,) = stream_each([OnlineStart(recipe, at, "one", stop_at=3)])
    assert first.outcome.stopped_by == "SIGTERM"
    (rest,) = stream_each([OnlineStart(recipe, at, "two")])
    keys = keys_trained(at, rest.outcome.checkpoint, recipe)
    assert sorted(sum(keys, [])) == list(range(320))
    assert rest.outcome.stopped_by == ""


def test_late_files_are_trained_before_the_next_window(
    like: Path, stream: Path, tmp_path: Path
) -> None:
    recipe, run = stream_recipe(stream), tmp_path / "run"
    (first,) = stream_each([OnlineStart(recipe, run, "one")])
    rows = rows_of(like)
    old = rows.slice(320, 3)
    deliver(stream, "very-late", at_times(old, [1, 3, 5]))
    deliver(stream, "next", at_times(rows.slice(323, 4), [700, 702, 704, 706]))
    (second,) = stream_each([OnlineStart(recipe, run, "two")])
    assert (second.outcome.late_files, second.outcome.windows) == (1, 8)
    keys = keys_trained(run, second.outcome.checkpoint, recipe)
    assert keys[7:] == [[320, 321, 322], [323, 324, 325, 326]]  # fewer rows than lanes, too
    assert sorted(sum(keys, [])) == list(range(327))
    assert [each["kind"] for each in slices_of(run)][7:] == ["late", "window"]
    assert first.outcome.rows == 320


def test_late_rows_are_left_out_and_counted(like: Path, stream: Path, tmp_path: Path) -> None:
    recipe, run = stream_recipe(stream, "online.late=skip"), tmp_path / "run"
    stream_each([OnlineStart(recipe, run, "one")])
    deliver(stream, "mixed", at_times(rows_of(like).slice(320, 4), [1, 3, 698, 700]))
    (second,) = stream_each([OnlineStart(recipe, run, "two")])
    outcome = second.outcome
    assert (outcome.late_files, outcome.skipped_rows, outcome.rows) == (1, 3, 321)
    assert keys_trained(run, outcome.checkpoint, recipe)[-1] == [323]


def test_rows_in_any_order_within_a_window(stream: Path, tmp_path: Path) -> None:
    """Writers whose files overlap in time: the window is shuffled, and no row is lost."""
    recipe = stream_recipe(stream, "data.order=shuffle")
    (done,) = stream_each([OnlineStart(recipe, tmp_path / "run")])
    keys = keys_trained(tmp_path / "run", done.outcome.checkpoint, recipe)
    assert keys == [list(range(low, min(low + 50, 320))) for low in range(0, 320, 50)]


def test_a_version_is_asked_for_with_rows_that_it_has_not_seen(
    stream: Path, tmp_path: Path
) -> None:
    from prismrec.train.periods import PeriodFiles

    run = tmp_path / "run"
    recipe = stream_recipe(stream, "online.publish_every=3")
    stream_each([OnlineStart(recipe, run)])
    periods = list(PeriodFiles(run).periods())
    assert [each.number for each in periods] == [3, 6]
    facts = periods[0].facts()
    assert (facts["step"], facts["slice"]["start"]) == (12, 300)
    assert read_manifest(periods[0].checkpoint).step == 12
    assert periods[0].run.held_out.exists()


class Hung(Exception):  # noqa: N818 - the end of a test
    """In the place of what never ends."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_hang_before_the_first_step_of_a_window_is_seen(
    stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit  # of the watching thread

    def hang(*_: Any) -> None:
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.01)
        raise Hung

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(online.Evaluator, "run", hang)
    recipe, run = stream_recipe(stream, "train.hang_timeout_s=0.2"), tmp_path / "run"
    (run / "log").mkdir(parents=True)
    with pytest.raises(Hung):
        stream_each([OnlineStart(recipe, run)])
    assert codes == [EXIT_CODE]
    assert (
        "no step was finished in 0.2 s after step 0; all ranks live"
        in (run / "hang.txt").read_text()
    )
