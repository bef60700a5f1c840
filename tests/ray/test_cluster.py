"""A cluster on this machine as a user has one: up, status, who is let in, down."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prismrec.cluster.stack import stack_versions
from tests.ray.clusters import Machine, cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose node has room for two workers."""
    with cluster(Machine(tmp_path_factory.mktemp("cluster") / "state"), 2) as found:
        yield found


def processes(machine: Machine) -> list[psutil.Process]:
    main = psutil.Process(machine.node()["pid"])
    return [main, *main.children(recursive=True)]


def test_status_shows_the_node(machine: Machine) -> None:
    done = machine.run("cluster", "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    (found,) = document["nodes"]
    assert document["address"] == machine.node()["address"]
    assert (found["address"], found["is_head"], found["interface"]) == ("127.0.0.1", True, "lo")
    assert (found["cores"], found["cores_used"]) == (2, 0)
    assert 0 < found["memory_used"] < found["memory"] == psutil.virtual_memory().total
    assert found["versions"] == stack_versions()


def test_everything_listens_on_loopback_and_nothing_tells_the_token(machine: Machine) -> None:
    token = machine.token()
    listening = set()
    for process in processes(machine):
        assert token not in " ".join(process.cmdline())
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    listening.add(each.laddr.ip.removeprefix("::ffff:"))
    assert listening == {"127.0.0.1"}
    logs = [path for path in Path(machine.node()["files"]).rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert [path.name for path in logs if token.encode() in path.read_bytes()] == []


@pytest.mark.slow  # Ray tries for twenty seconds
def test_nobody_is_let_in_with_another_token(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "state")
    other.state.mkdir(mode=0o700)
    (other.state / "auth_token").write_text("0" * 64)
    (other.state / "auth_token").chmod(0o600)
    done = other.run("cluster", "status", "--address", machine.node()["address"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: --address: the cluster at {machine.node()['address']} does not let"
    )


def test_a_second_node_needs_a_state_of_its_own(machine: Machine) -> None:
    done = machine.run("cluster", "up")
    assert done.returncode == 2
    assert "this machine has a node of the cluster at" in done.stderr


def test_down_ends_what_up_started_and_nothing_else(machine: Machine) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    below, files = processes(machine), Path(machine.node()["files"])
    assert len(below) > 4
    done = machine.run("cluster", "down")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("ended the head node 127.0.0.1")
    assert [each for each in below if each.is_running() and each.status() != "zombie"] == []
    assert not files.exists()
    assert not (machine.state / "node.json").exists()
    assert (machine.state / "auth_token").exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert machine.run("cluster", "down").stderr == "there is no node of this machine to end\n"
