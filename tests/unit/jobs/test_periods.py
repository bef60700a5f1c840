"""Versions of a stream on their way out: none is lost with the one before it, no thread with a bad disk."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from prismrec.jobs import periods
from prismrec.jobs.periods import Office, Publisher
from prismrec.tracking.run import MlflowTracker
from prismrec.train.periods import Period, PeriodFiles
from tests.helpers.runs import make_recipe


@pytest.fixture
def office(tmp_path: Path) -> Office:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    recipe = make_recipe(
        tmp_path / "rows", "data.order='time'", "online={window=10}", f"tracking.uri='{uri}'"
    )
    tracker = MlflowTracker.start(recipe.tracking, "stream")
    return Office(recipe, PeriodFiles(tmp_path), tracker, Console(file=io.StringIO()))


def asked_for(directory: Path, number: int, step: int) -> Period:
    period = Period(directory / f"periods/{number:06d}")
    period.directory.mkdir(parents=True)
    period.request({"step": step, "slice": {}})
    return period


def test_a_delta_begins_where_the_newest_one_ended(tmp_path: Path) -> None:
    files = PeriodFiles(tmp_path)
    first, given_up, third = (asked_for(tmp_path, n, 100 * n) for n in (1, 2, 3))
    assert periods._told_until(files, first) == 0
    first.deltas.mkdir()
    given_up.publish({"model": None, "reason": "the copy differed"})
    assert periods._told_until(files, third) == 100
    given_up.deltas.mkdir()
    assert periods._told_until(files, third) == 200


def test_what_cannot_even_be_told_ends_no_thread(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(periods, "_AGAIN_S", 0.05)
    stray = Period(tmp_path / "periods/stray")  # whose number nobody can read
    stray.directory.mkdir(parents=True)
    stray.request({})
    with Publisher(office) as publisher:
        time.sleep(1.0)
        assert publisher._thread.is_alive()
        period = asked_for(tmp_path, 1, 100)
    assert period.published()["model"] is None, "nothing to export is a reason, and told"
    assert not stray.is_published


def test_who_is_to_end_at_once_does_not_wait(office: Office, tmp_path: Path) -> None:
    period = asked_for(tmp_path, 1, 100)
    request = period.directory / "request.json"
    request.unlink()
    os.mkfifo(request)  # whoever reads it waits
    publisher = Publisher(office)

    def leave() -> None:
        with publisher:
            time.sleep(1.5)
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        leave()
    assert publisher._thread.is_alive(), "left while it was publishing"
    threading.Thread(target=request.write_text, args=("{}",), daemon=True).start()
    publisher._thread.join(20)
    assert not publisher._thread.is_alive()
