"""A cluster on this machine as a user has one: up, status, who is let in, down."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prismrec.cluster.stack import stack_versions
from tests.ray import commands

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prismrec(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [commands.PROGRAM, *arguments],
        env=commands.environment() | {"PRISMREC_STATE_DIR": str(state)},
        cwd=state.parent,
        capture_output=True,
        text=True,
        timeout=commands.DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a node with room for two workers."""
    directory = tmp_path_factory.mktemp("cluster") / "state"
    ports = ["--port", str(free_port()), "--dashboard-port", str(free_port())]
    done = prismrec(directory, "cluster", "up", "--workers", "2", *ports, "--json")
    try:
        assert done.returncode == 0, done.stderr
        yield directory
    finally:
        prismrec(directory, "cluster", "down")


def node(state: Path) -> dict[str, Any]:
    return dict(json.loads((state / "node.json").read_text()))


def processes(state: Path) -> list[psutil.Process]:
    main = psutil.Process(node(state)["pid"])
    return [main, *main.children(recursive=True)]


def test_status_shows_the_node(state: Path) -> None:
    done = prismrec(state, "cluster", "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    (found,) = document["nodes"]
    assert document["address"] == node(state)["address"]
    assert (found["address"], found["is_head"], found["interface"]) == ("127.0.0.1", True, "lo")
    assert (found["cores"], found["cores_used"]) == (2, 0)
    assert 0 < found["memory_used"] < found["memory"] == psutil.virtual_memory().total
    assert found["versions"] == stack_versions()


def test_everything_listens_on_loopback_and_nothing_tells_the_token(state: Path) -> None:
    token = (state / "auth_token").read_text()
    listening = set()
    for process in processes(state):
        assert token not in " ".join(process.cmdline())
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    listening.add(each.laddr.ip.removeprefix("::ffff:"))
    assert listening == {"127.0.0.1"}
    logs = [path for path in Path(node(state)["files"]).rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert [path.name for path in logs if token.encode() in path.read_bytes()] == []


def test_nobody_is_let_in_with_another_token(state: Path, tmp_path: Path) -> None:
    other = tmp_path / "state"
    other.mkdir(mode=0o700)
    (other / "auth_token").write_text("0" * 64)
    (other / "auth_token").chmod(0o600)
    done = prismrec(other, "cluster", "status", "--address", node(state)["address"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: --address: the cluster at {node(state)['address']} does not let"
    )


def test_a_second_node_needs_a_state_of_its_own(state: Path) -> None:
    done = prismrec(state, "cluster", "up")
    assert done.returncode == 2
    assert "this machine has a node of the cluster at" in done.stderr


def test_down_ends_what_up_started_and_nothing_else(state: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    below, files = processes(state), Path(node(state)["files"])
    assert len(below) > 4
    done = prismrec(state, "cluster", "down")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("ended the head node 127.0.0.1")
    assert [each for each in below if each.is_running() and each.status() != "zombie"] == []
    assert not files.exists()
    assert not (state / "node.json").exists()
    assert (state / "auth_token").exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert prismrec(state, "cluster", "down").stderr == "there is no node of this machine to end\n"
