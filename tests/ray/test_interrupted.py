"""Stopped, killed and resumed runs end exactly where an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from prismrec.checkpoint import latest
from tests.ray import commands
from tests.ray.commands import Home
from tests.ray.ledger import every_row_once

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def status(at: Home) -> tuple[str, int]:
    """How MLflow says the only run ended, and how many models are registered."""
    uri = f"sqlite:///{at.directory}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    facts = json.loads((at.run() / "run.json").read_text())
    return client.get_run(facts["run"]).info.status, len(client.search_registered_models())


def has_stopped(at: Home, ended: tuple[int, str, str], name: str) -> None:
    """The run saved, said so in one sentence, registered nothing and is killed in MLflow."""
    code, out, err = ended
    assert code == 128 + commands.signal_number(name), err
    assert out == ""
    (line,) = err.splitlines()
    saved = latest(at.run() / "checkpoints")
    assert line == (
        f"stopped by {name}; saved in {saved}, nothing is registered; --resume goes on from there"
    )
    assert status(at) == ("KILLED", 0)
    assert not list(at.run().glob("checkpoints/*.tmp-*"))


def test_a_killed_worker_costs_nothing(at: Home, undisturbed: dict[str, Any]) -> None:
    process = commands.start(at, "--json")
    run = at.run()
    commands.await_step(run, 6)
    victim = commands.ray_workers(process)[-1]
    victim.send_signal(signal.SIGKILL)
    killed_at = max(commands.saved_steps(run))
    code, out, err = commands.finish(process)
    assert code == 0, err
    commands.is_ours(err)
    steps = [e["step"] for e in events(run) if e["event"] == "metrics"]
    assert killed_at < max(steps) // 2, "the worker was not killed in the first epoch"
    assert len([e for e in events(run) if e["event"] == "parameters"]) == 2
    every_row_once(at)
    assert json.loads(out)["test"] == pytest.approx(undisturbed, abs=1e-6)
    assert status(at) == ("FINISHED", 1)


def test_stops_under_ray_save_and_resume_exactly(at: Home, undisturbed: dict[str, Any]) -> None:
    process = commands.start(at, "--json")
    commands.await_step(at.run(), 6)
    commands.ray_workers(process)[-1].send_signal(signal.SIGTERM)
    has_stopped(at, commands.finish(process), "SIGTERM")
    first = max(commands.saved_steps(at.run()))

    process = commands.start(at, "--json", "--resume")
    commands.await_step(at.run(), first + 6)
    process.send_signal(signal.SIGINT)
    has_stopped(at, commands.finish(process), "SIGINT")

    code, out, err = commands.train(at, "--json", "--resume", "--no-ray")
    assert code == 0, err
    every_row_once(at)
    assert json.loads(out)["test"] == pytest.approx(undisturbed, abs=1e-6)
    assert status(at) == ("FINISHED", 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_reaches_the_whole_process_group(at: Home, workers: int) -> None:
    process = commands.start(at, "--no-ray", "--workers", str(workers))
    commands.await_step(at.run(), 6)
    os.killpg(process.pid, signal.SIGINT)
    has_stopped(at, commands.finish(process), "SIGINT")


def test_a_second_signal_ends_at_once(at: Home) -> None:
    process = commands.start(at, "--no-ray", "train.epochs=1000")
    run = at.run()
    commands.await_step(run, 6)
    (worker,) = commands.children(process)[:1]
    worker.suspend()  # nothing can be saved any more
    process.send_signal(signal.SIGTERM)
    commands.await_((run / "stop").exists, "request to stop")
    process.send_signal(signal.SIGTERM)
    code, out, err = commands.finish(process)
    assert (code, out) == (143, "")
    assert err.startswith("ended at once by SIGTERM; saved in ")
    assert status(at) == ("KILLED", 0)
    assert not worker.is_running()


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
