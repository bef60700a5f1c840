"""`prismrec serve` as a user runs it: real Ray Serve, real HTTP, promotion under load, SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from prismrec.cluster import state
from prismrec.cluster.network import free_port
from prismrec.config.train import TrackingSection
from prismrec.tracking.registry import Registry
from prismrec.tracking.run import MlflowTracker
from tests.ray.commands import PROGRAM, await_, environment
from tests.unit.serving.world import make_world, random_raw
from tests.unit.serving_http.server import Client
from tests.unit.serving_http.test_requests import BODIES

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SCALES = {1: 0.5, 2: 0.1}
"""What tells the two versions apart: how large the numbers of their tables are."""


@dataclass(frozen=True)
class Running:
    """A server in a process group of its own.

    Args:
        process: the command.
        client: asks it.
        uri: its registry.
        home: its working directory.
        printed: the file of what it printed.
    """

    process: subprocess.Popen[bytes]
    client: Client
    uri: str
    home: Path
    printed: Path

    def replica(self) -> psutil.Process:
        """The process that listens at the port."""
        for each in psutil.Process(self.process.pid).children(recursive=True):
            if any(c.laddr.port == self.client.port for c in each.net_connections("tcp")):
                return each
        raise AssertionError("nobody listens")


def register(uri: str, home: Path, version: int) -> None:
    section = TrackingSection(uri=uri, experiment="tests")
    tracker = MlflowTracker.start(section, f"run {version}")
    tracker.close()
    bundle = make_world(SCALES[version]).bundle(home / f"model-{version}")
    tags = {"data": "rows", "data_fingerprint": "f00"}
    auc = {"click/auc": 0.7 + version / 100}
    assert Registry(uri).register(tracker.run_id, bundle, "ctr", auc, tags).version == version


def start(home: Path, uri: str, *arguments: str) -> Running:
    port = free_port("127.0.0.1")
    printed = home / f"serve-{port}.log"
    command = [PROGRAM, "serve", "models:/ctr@champion", "--tracking-uri", uri]
    command += ["--port", str(port), "--watch-seconds", "0.2", *arguments]
    with printed.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment() | {state.DIRECTORY: str(home / "state")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    await_(lambda: "Ctrl-C ends it" in printed.read_text() or process.poll() is not None, "server")
    assert process.poll() is None, printed.read_text()
    token = (home / "state/serve.token").read_text().strip()
    return Running(process, Client(port, token), uri, home, printed)


def stop(running: Running) -> int:
    """Ends it as `kill` does; the exit code."""
    below = psutil.Process(running.process.pid).children(recursive=True)
    running.process.send_signal(signal.SIGTERM)
    code = running.process.wait(120)
    _, alive = psutil.wait_procs(below, 60)
    for each in alive:
        each.kill()
    assert alive == [], [each.name() for each in alive]
    return code


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("serve")
    uri = f"sqlite:///{home}/mlflow.db"
    for version in SCALES:
        register(uri, home, version)
    server = start(home, uri)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)


@dataclass
class Load:
    """Clients that ask without end, each on one connection after the other."""

    client: Client
    answers: Counter[tuple[int, int | None]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int) -> None:
        raw = random_raw(8, seed)
        expected = {
            version: torch.sigmoid(make_world(scale).expected_logits(raw)).numpy()
            for version, scale in SCALES.items()
        }
        while not self.stopped.is_set():
            try:
                answer = self.client.predict({"inputs": raw})
            except OSError as error:
                self.wrong.append(repr(error))
                continue
            if answer.status != 200:
                self.wrong.append(f"{answer.status} {answer.body[:200]!r}")
                continue
            document = answer.json
            version = document["model"]["version"]
            got = [[row["click"], row["buy"]] for row in document["predictions"]]
            if not np.allclose(got, expected[version], atol=1e-6):
                self.wrong.append(f"version {version} gave numbers of another")
            self.answers[answer.status, version] += 1

    def await_more(self, version: int, count: int) -> None:
        """Wait for `count` more answers of one version."""
        wanted = self.answers[200, version] + count
        await_(lambda: self.answers[200, version] >= wanted, f"answers of version {version}")


def test_a_promotion_under_load_fails_no_request(running: Running) -> None:
    load = Load(running.client)
    threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    try:
        registry = Registry(running.uri)
        load.await_more(1, 20)
        for version in (2, 1, 2):
            registry.promote(f"models:/ctr/{version}", "click/auc", force=True)
            load.await_more(version, 50)
    finally:
        load.stopped.set()
        for each in threads:
            each.join(60)
    assert load.wrong == []
    assert min(load.answers.values()) > 50
    metrics = running.client.ask("/metrics").body.decode()
    assert "prismrec_rollovers_total 3.0" in metrics
    assert 'prismrec_model_info{name="ctr",version="2"} 1.0' in metrics


def test_bodies_of_any_kind_take_nothing_down(running: Running) -> None:
    replica = running.replica()
    statuses: Counter[int] = Counter()

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(BODIES)
    def ask(body: bytes) -> None:
        statuses[running.client.ask("/predict", body).status] += 1

    ask()
    assert set(statuses) <= {200, 400, 413}
    assert statuses[400] > 100
    columns = random_raw(3)
    assert running.client.predict({"inputs": columns}).status == 200
    assert running.replica() == replica


def test_it_listens_on_loopback_and_tells_nobody_the_token(running: Running) -> None:
    assert Client(running.client.port, None).ask("/schema").status == 401
    below = psutil.Process(running.process.pid).children(recursive=True)
    serving = [
        connection.laddr.ip
        for each in below
        for connection in each.net_connections("tcp")
        if connection.status == "LISTEN"
        and any(word in " ".join(each.cmdline()) for word in ("ServeReplica", "ProxyActor"))
        and connection.laddr.port == running.client.port
    ]
    assert serving == ["127.0.0.1"]
    token = running.client.token
    assert token is not None
    for each in [psutil.Process(running.process.pid), *below]:
        assert token not in " ".join(each.cmdline())
        assert token not in json.dumps(each.environ())
    assert token not in running.printed.read_text()
    (session,) = {Path(p).parent for p in _session_folders(below)}
    logs = [path for path in session.rglob("*") if path.is_file() and "log" in path.name]
    assert len(logs) > 5
    for path in [*logs, running.home / "mlflow.db"]:
        assert token.encode() not in path.read_bytes(), path


def _session_folders(processes: list[psutil.Process]) -> set[str]:
    """The `logs` folders that the command lines of Ray's processes name."""
    words = [word for each in processes for word in each.cmdline()]
    found = {word.partition("=")[2] or word for word in words if word.endswith("/logs")}
    return {path for path in found if Path(path).is_dir()}


def test_a_killed_replica_is_followed_on_its_port(running: Running) -> None:
    replica = running.replica()
    replica.kill()

    def is_back() -> bool:
        try:
            return running.client.ask("/health").status == 200 and running.replica() != replica
        except (OSError, AssertionError, psutil.Error):
            return False

    await_(is_back, "replica")
    assert running.client.predict({"inputs": random_raw(2)}).json["model"]["version"] == 2


def test_terminated_it_ends_well(running: Running) -> None:
    began = time.monotonic()
    assert stop(running) == 0, running.printed.read_text()
    assert time.monotonic() - began < 150
    with pytest.raises(OSError, match=r"refused"):
        running.client.ask("/health")
