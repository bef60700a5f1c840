"""A worker that is stopped: the run says so and ends, or starts again, within its timeout."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.ray import commands
from tests.ray.ledger import every_row_once

TIMEOUT = "train.hang_timeout_s=4"


def says_what_hung(run: Path, silent: int) -> None:
    """The log of the rank that lived has its stacks and its newest batch."""
    log = (run / "log" / f"rank-{1 - silent:05d}.log").read_text()
    assert f"rank {1 - silent} hangs: no progress for 4 s after step " in log
    assert "newest batch: 32 rows, epoch " in log
    assert "ids: user_id 32, item_id 32, category 32" in log
    assert "most recent call first" in log, "the stacks of its threads"
    assert "train/loop.py" in log, "the thread that trains among them"


@pytest.mark.slow
def test_a_stopped_worker_ends_a_run_without_ray_with_a_sentence(
    tmp_path: Path, data: Path
) -> None:
    at = commands.home(tmp_path, data)
    process = commands.start(at, "--no-ray", TIMEOUT, "train.epochs=1000")
    run = at.run()
    commands.await_step(run, 6)
    victim = commands.children(process)[-1]
    victim.suspend()
    code, out, err = commands.finish(process)
    assert (code, out) == (2, "")
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the workers hang: no step was finished in 4 s after step " in said
    assert " gave no sign of life" in said  # and on which machine, if it ever said
    assert f"{run}/log/rank-*.log; --resume goes on from the last checkpoint" in said
    says_what_hung(run, int(said.partition("; rank ")[2][0]))
    assert not victim.is_running()


@pytest.mark.slow
@pytest.mark.ray
def test_under_ray_it_counts_as_a_lost_worker(tmp_path: Path, data: Path) -> None:
    undisturbed = commands.home(tmp_path / "undisturbed", data)
    code, out, err = commands.train(undisturbed, "--no-ray", "--json")
    assert code == 0, err
    at = commands.home(tmp_path / "stopped", data)
    process = commands.start(at, "--json", TIMEOUT)
    run = at.run()
    commands.await_step(run, 6)
    commands.ray_workers(process)[-1].send_signal(signal.SIGSTOP)
    code, stopped_out, err = commands.finish(process)
    assert code == 0, err
    every_row_once(at)
    test = json.loads(stopped_out)["test"]
    assert test == pytest.approx(json.loads(out)["test"], abs=1e-6)
    assert "gave no sign of life" in "".join(
        p.read_text() for p in (run / "log").glob("rank-*.log")
    )
