"""The record of a disturbed run: what counts as a new step, and why waiting ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recovery_record import Record


def _written(directory: Path, *events: dict[str, Any]) -> Record:
    (directory / "runs/small-1").mkdir(parents=True)
    lines = [json.dumps(each) for each in events]
    text = "\n".join(lines) + '\n{"time": 9, "ev'  # the last one is being written
    (directory / "runs/small-1/events.jsonl").write_text(text)
    return Record(directory)


def _start(time: float) -> dict[str, Any]:
    return {"time": time, "event": "parameters", "values": {}}


def _step(time: float, step: int) -> dict[str, Any]:
    return {"time": time, "event": "metrics", "step": step, "values": {"train/loss": 0.1}}


def test_a_step_is_new_if_workers_from_before_had_not_done_it(tmp_path: Path) -> None:
    saved = {"time": 4.5, "event": "file", "path": "x", "folder": "y"}
    events = [_start(1), _step(2, 40), _step(3, 41), _step(4, 42), saved]
    again = [_start(5), _step(6, 40), _step(7, 42), _step(8, 43)]
    record = _written(tmp_path, *events, *again)
    assert (record.newest(), record.newest(3.5)) == (43, 41)
    assert (record.back(3.5), record.first(3.5), record.past(3.5)) == (5, 40, 8)
    assert record.past(3.5, 43) is None


def test_workers_that_are_not_back_have_done_nothing(tmp_path: Path) -> None:
    record = _written(tmp_path, _start(1), _step(2, 40), _step(4, 41))
    assert (record.back(3), record.past(3)) == (None, None)
    assert Record(tmp_path / "elsewhere").newest() == 0


def test_waiting_ends_with_a_run_that_fails(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("no space left")
    with subprocess.Popen(["false"]) as run:
        run.wait()
        with pytest.raises(RuntimeError, match="no step 5: exit code 1\nno space left"):
            Record(tmp_path).await_(lambda: False, "step 5", run)
