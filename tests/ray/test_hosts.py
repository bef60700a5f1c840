"""Training over two hosts: two network namespaces with a bridge between them.

Each worker is alone on its host, so that every exchange of the ranks crosses the bridge.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.hosts import Host, two_hosts, why_impossible
from tests.ray import commands
from tests.ray.commands import PROGRAM, Home
from tests.ray.ledger import every_row_once

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_impossible()), reason=why_impossible() or "possible"),
]
SECONDS = 400


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host, str]]:
    """A cluster of two hosts with room for one worker each, and its address."""
    with two_hosts(tmp_path_factory.mktemp("hosts")) as (first, second):
        done = first.run(
            PROGRAM, "cluster", "up", "--host", first.address, "--workers", "1", "--json"
        )
        assert done.returncode == 0, done.stderr
        address = json.loads(done.stdout)["address"]
        refused = second.run(PROGRAM, "cluster", "join", address)
        assert refused.returncode == 2
        assert "this machine has no token of the cluster" in refused.stderr
        shutil.copy(first.state / "auth_token", second.state / "auth_token")
        join(second, address)
        yield first, second, address
        assert first.run(PROGRAM, "cluster", "down").returncode == 0
        assert second.run(PROGRAM, "cluster", "down").returncode == 0
        assert (first.pids(), second.pids()) == ([], [])


def join(host: Host, address: str) -> None:
    done = host.run(PROGRAM, "cluster", "join", address, "--workers", "1")
    assert done.returncode == 0, done.stderr


def start(host: Host, at: Home, *arguments: str) -> subprocess.Popen[str]:
    """`prismrec train --address` on a host."""
    return subprocess.Popen(
        host.command(PROGRAM, "train", str(at.recipe), "--json", *arguments),
        cwd=at.directory,
        env=host.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The document that the run prints."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def test_both_hosts_are_seen_with_their_networks(hosts: tuple[Host, Host, str]) -> None:
    first, second, _ = hosts
    done = second.run(PROGRAM, "cluster", "status", "--json")
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    seen = [(n["address"], n["is_head"], n["interface"], n["cores"]) for n in nodes]
    assert seen == [(first.address, True, "net0", 1), (second.address, False, "net0", 1)]


def test_a_host_that_dies_costs_the_steps_since_the_checkpoint(
    hosts: tuple[Host, Host, str], at: Home, undisturbed: dict[str, Any]
) -> None:
    first, second, address = hosts
    process = start(first, at, "--address", address)
    run = at.run()
    commands.await_step(run, 6)
    for rank in (0, 1):
        text = (run / f"log/rank-{rank:05d}.log").read_text()
        assert re.search(rf"rank {rank} of 2, 0 of 1 on \S+, over net0", text)
    second.kill()
    killed_at = max(commands.saved_steps(run))
    join(second, address)
    document = finished(process)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert killed_at < max(e["step"] for e in events if e["event"] == "metrics") // 2
    assert len([e for e in events if e["event"] == "parameters"]) == 2
    every_row_once(at)
    assert document["test"] == pytest.approx(undisturbed, abs=1e-6)


def test_a_driver_that_is_killed_leaves_a_run_to_resume(
    hosts: tuple[Host, Host, str], at: Home, undisturbed: dict[str, Any]
) -> None:
    first, _, address = hosts
    process = start(first, at, "--address", address)
    commands.await_step(at.run(), 6)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL
    document = finished(start(first, at, "--address", address, "--resume"))
    every_row_once(at)
    assert document["test"] == pytest.approx(undisturbed, abs=1e-6)
