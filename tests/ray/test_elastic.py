"""A cluster that grows and shrinks under a run: other numbers of workers, the same rows and metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from ray.cluster_utils import Cluster

from tests.ray import commands
from tests.ray.ledger import every_row_once

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS, ENOUGH_S = 40, 500


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A Ray of one core on this machine, in processes of its own."""
    place = mkdtemp(prefix="r", dir="/tmp")  # a socket's path is short
    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "temp_dir": place, "include_dashboard": False},
    )
    yield started
    started.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def worlds(run: Path) -> list[int]:
    """The number of workers at each start, from the events of the run."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [e["values"]["world_size"] for e in events if e["event"] == "parameters"]


def test_one_two_one(tmp_path: Path, cluster: Cluster) -> None:
    data = commands.world(tmp_path / "world")
    plain = commands.home(tmp_path / "plain", data)
    long = [f"train.epochs={EPOCHS}", "checkpoint.every_steps=50", "train.log_every=50"]
    process = commands.start(plain, "--no-ray", "--workers", "1", "--json", *long)
    code, out, err = commands.finish(process, ENOUGH_S)
    assert code == 0, err
    at = commands.home(tmp_path / "elastic", data)
    process = commands.start(
        at, "--json", "--address", cluster.address, *long, "workers.min_count=1",
        "workers.resize_every_s=2",
    )  # fmt: skip
    run = at.run()
    commands.await_step(run, 50)
    assert worlds(run) == [1]
    second = cluster.add_node(num_cpus=1)
    commands.await_(lambda: worlds(run) == [1, 2], "second worker")
    before = max(commands.saved_steps(run))
    commands.await_step(run, before + 50)
    cluster.remove_node(second, allow_graceful=False)
    commands.await_(lambda: worlds(run) == [1, 2, 1], "run with one worker again")
    code, elastic, err = commands.finish(process, ENOUGH_S)
    assert code == 0, err
    every_row_once(at, EPOCHS)
    test = json.loads(elastic)["test"]
    assert test == pytest.approx(json.loads(out)["test"], abs=1e-5)
