"""A cluster that grows and shrinks under a run: other numbers of workers, the same rows and metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.hosts import two_hosts, why_impossible
from tests.ray import commands
from tests.ray.commands import PROGRAM
from tests.ray.ledger import every_row_once

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_impossible()), reason=why_impossible() or "possible"),
]
EPOCHS, ENOUGH_S = 40, 500
LONG = (f"train.epochs={EPOCHS}", "checkpoint.every_steps=50", "train.log_every=50")


def worlds(run: Path) -> list[int]:
    """The number of workers at each start, from the events of the run."""
    path = run / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [e["values"]["world_size"] for e in events if e["event"] == "parameters"]


def test_one_two_one(tmp_path: Path) -> None:
    data = commands.world(tmp_path / "world")
    plain = commands.home(tmp_path / "plain", data)
    process = commands.start(plain, "--no-ray", "--workers", "1", "--json", *LONG)
    code, undisturbed, err = commands.finish(process, ENOUGH_S)
    assert code == 0, err
    at = commands.home(tmp_path / "elastic", data)
    with two_hosts(tmp_path / "hosts") as (first, second):
        up = ("cluster", "up", "--host", first.address, "--workers", "1", "--json")
        done = first.run(PROGRAM, *up)
        assert done.returncode == 0, done.stderr
        address = json.loads(done.stdout)["address"]
        shutil.copy(first.state / "auth_token", second.state / "auth_token")
        run_it = (PROGRAM, "train", str(at.recipe), "--json", "--address", address, *LONG)
        elastic = ("workers.min_count=1", "workers.resize_every_s=2")
        process = subprocess.Popen(
            first.command(*run_it, *elastic),
            cwd=at.directory,
            env=first.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run = at.run()
        commands.await_step(run, 50)
        assert worlds(run) == [1], "there is room for one"
        joined = second.run(PROGRAM, "cluster", "join", address, "--workers", "1")
        assert joined.returncode == 0, joined.stderr
        commands.await_(lambda: worlds(run) == [1, 2], "second worker")
        commands.await_step(run, max(commands.saved_steps(run)) + 50)
        second.kill()
        commands.await_(lambda: worlds(run) == [1, 2, 1], "run with one worker again")
        out, err = process.communicate(timeout=ENOUGH_S)
        assert process.returncode == 0, err
    every_row_once(at, EPOCHS)
    assert json.loads(out)["test"] == pytest.approx(json.loads(undisturbed)["test"], abs=1e-5)
