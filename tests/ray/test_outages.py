"""A disk that is full, a tracking server that dies, workers killed while they save: what a user sees."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from prismrec.checkpoint import latest, verify
from tests.helpers.mlflow_server import MlflowServer
from tests.ray import commands
from tests.ray.commands import Home
from tests.ray.ledger import every_row_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def kill_all(process: subprocess.Popen[str]) -> None:
    """End a run and everything it started, as a machine does that loses power."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in below:
        if each.is_running():
            each.kill()
    process.communicate()


def test_killed_while_saving_again_and_again(
    tmp_path: Path, data: Path, undisturbed: dict[str, Any]
) -> None:
    """Every step is saved, so that nearly every moment is one of a save."""
    at, moments = commands.home(tmp_path, data), random.Random(3)
    always, saved = ("--no-ray", "--json", "checkpoint.every_steps=1"), 0
    for attempt in range(4):
        process = commands.start(at, *always, *(["--resume"] if attempt else []))
        commands.await_step(at.run(), saved + 3)
        time.sleep(moments.uniform(0, 0.3))
        kill_all(process)
        newest = latest(at.run() / "checkpoints")
        assert newest is not None
        assert verify(newest).step > saved
        saved = verify(newest).step
    code, out, err = commands.train(at, *always, "--resume")
    assert code == 0, err
    every_row_once(at)
    assert json.loads(out)["test"] == pytest.approx(undisturbed, abs=1e-6)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, mounted where runs are written."""
    place = tmp_path / "home" / "runs"
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_costs_the_save_and_nothing_else(
    small_disk: Path, data: Path, undisturbed: dict[str, Any]
) -> None:
    at = commands.home(small_disk.parent, data)
    process = commands.start(at, "--no-ray", "--json")
    run = at.run()
    commands.await_step(run, 6)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 65536)
    code, out, err = commands.finish(process)
    assert (code, out) == (2, ""), err
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert any("No space left on device; free space" in line for line in said), err
    newest = latest(run / "checkpoints")
    assert newest is not None
    assert verify(newest).step >= 6, "earlier checkpoints are whole"
    filler.unlink()
    code, out, err = commands.train(at, "--no-ray", "--json", "--resume")
    assert code == 0, err
    every_row_once(at)
    assert json.loads(out)["test"] == pytest.approx(undisturbed, abs=1e-6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server that runs."""
    (tmp_path / "server").mkdir()
    started = MlflowServer(tmp_path / "server")
    started.start()
    yield started
    started.kill()


def losses_there(server: MlflowServer, at: Home) -> set[int]:
    """Steps whose loss the server has."""
    run = json.loads((at.run() / "run.json").read_text())["run"]
    return {each.step for each in MlflowClient(server.uri).get_metric_history(run, "train/loss")}


def losses_here(at: Home) -> set[int]:
    """Steps whose loss the run itself recorded."""
    events = map(json.loads, (at.run() / "events.jsonl").read_text().splitlines())
    return {e["step"] for e in events if e["event"] == "metrics" and "train/loss" in e["values"]}


def test_training_outlives_the_tracking_server(
    tmp_path: Path, data: Path, server: MlflowServer
) -> None:
    at = commands.home(tmp_path / "home", data)
    process = commands.start(at, "--no-ray", "--json", f"tracking.uri={server.uri}")
    commands.await_step(at.run(), 6)
    server.kill()
    commands.await_step(at.run(), 60)
    server.start()
    code, _, err = commands.finish(process, 400)
    assert code == 0, err
    assert losses_there(server, at) == losses_here(at), "what happened meanwhile is there too"


def test_metrics_are_kept_for_a_server_that_stays_away(
    tmp_path: Path, data: Path, server: MlflowServer
) -> None:
    at = commands.home(tmp_path / "home", data)
    process = commands.start(at, "--no-ray", "--json", f"tracking.uri={server.uri}")
    commands.await_step(at.run(), 6)
    server.kill()
    code, _, err = commands.finish(process, 900)
    assert code == 2, err
    assert "--resume registers it" in err
    assert (at.run() / "undelivered.jsonl").exists()
    server.start()
    code, _, err = commands.train(
        at, "--no-ray", "--json", "--resume", f"tracking.uri={server.uri}"
    )
    assert code == 0, err
    assert losses_there(server, at) == losses_here(at)
    assert not (at.run() / "undelivered.jsonl").exists()
    shutil.rmtree(at.run())
