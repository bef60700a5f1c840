"""Runs as jobs of a cluster: what is shipped, exit codes, stopping, and where secrets are not."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from prismrec.cluster.network import addresses, is_loopback
from tests.helpers.mlflow_server import MlflowServer
from tests.ray import commands
from tests.ray.clusters import DEADLINE_S, Machine, cluster
from tests.ray.commands import Home

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

PLANTED = "pl4nted-s3cret"
"""A password in the environment of the nodes; nothing that users of the cluster see has it."""
SHIPPED = """
import importlib.metadata, json, os, torch, prismrec, prismrec.jobs.train
print(json.dumps([torch.__file__, prismrec.__file__, prismrec.jobs.train.__file__,
                  importlib.metadata.requires("prismrec"), os.listdir(".")]))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    secret = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PLANTED}
    place = tmp_path_factory.mktemp("cluster") / "state"
    with cluster(Machine(place, secret), 2):
        yield Machine(place)  # who submits has no secret in the environment


def relative(at: Home) -> str:
    """The recipe with paths that start in its folder."""
    path = at.directory / "relative.toml"
    path.write_text(at.recipe.read_text().replace(f"{at.directory}/", ""))
    return str(path)


def api(machine: Machine, path: str) -> str:
    request = urllib.request.Request(
        machine.node()["dashboard"] + path,
        headers={"Authorization": f"Bearer {machine.token()}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:  # what a failure says may hold no secret either
        return str(refused.read().decode())


def job_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_followed_job_trains_and_leaves_with_0(machine: Machine, at: Home) -> None:
    done = machine.run("submit", relative(at), "--dir", str(at.directory), "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert Path(result["directory"]) == at.run()
    assert result["version"] == 1
    job = re.search(r"job (small-\w+);", done.stderr)
    assert job is not None
    found = json.loads(machine.run("jobs", "status", job[1], "--json").stdout)
    assert (found["status"], found["exit_code"], found["recipe"]) == ("SUCCEEDED", 0, "small")
    assert job[1] in machine.run("jobs", "list").stdout
    assert machine.run("jobs", "logs", job[1]).stdout == done.stdout
    shown = api(machine, "/api/jobs/") + api(machine, "/api/train/v2/runs/v1") + done.stdout
    assert job[1] in shown
    client = MlflowClient(f"sqlite:///{at.directory}/mlflow.db")
    facts = client.get_run(json.loads((at.run() / "run.json").read_text())["run"])
    shown += str(facts.to_dictionary())
    for secret in (PLANTED, machine.token()):
        assert secret not in shown
        assert holding(secret, Path(machine.node()["files"]), at.directory) == []


def holding(secret: str, *folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


def test_a_job_has_our_code_and_the_node_s_torch(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(machine.state / "auth_token")}
    for name, value in (machine.variables() | named).items():
        monkeypatch.setenv(name, value)
    from prismrec.jobs.remote import Jobs
    from prismrec.jobs.wheel import pack_wheel

    (tmp_path / "probe.py").write_text(SHIPPED)
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (tmp_path / "probe.py").rename(shipped / "probe.py")
    environment = {"working_dir": str(shipped), "py_modules": [str(pack_wheel(tmp_path))]}
    jobs, said = Jobs(machine.node()["dashboard"]), []
    ended = jobs.follow(jobs.start("probe", "python probe.py", environment, "x"), said.append)
    assert ended.exit_code == 0, said
    of_torch, ours, part, requires, files = json.loads("".join(said).splitlines()[-1])
    assert of_torch == torch.__file__
    folder = Path(ours).parent
    assert "/runtime_resources/py_modules_files/" in ours
    assert Path(part) == folder / "jobs/train.py"
    assert [path.name for path in folder.parent.iterdir() if path.name != "bin"] == [
        path.name for path in folder.parent.iterdir() if path.name.startswith("prismrec")
    ]
    assert (requires, files) == (None, ["probe.py"])


def test_a_stopped_job_saves_and_another_goes_on(machine: Machine, at: Home) -> None:
    recipe, where = relative(at), ["--dir", str(at.directory)]
    job = job_of(machine.run("submit", recipe, "train.epochs=40", *where))
    commands.await_step(at.run(), 6)
    follower = machine.start("jobs", "logs", job, "--follow")
    done = machine.run("jobs", "stop", job)
    assert done.returncode == 0, done.stderr
    step = max(commands.saved_steps(at.run()))
    assert done.stderr.startswith(f"{job} STOPPED: stopped by SIGTERM; saved in ")
    assert f"step-{step:08d}" in done.stderr
    follower.communicate(timeout=DEADLINE_S)
    assert follower.returncode == 143
    done = machine.run(
        "submit",
        recipe,
        f"train.steps={step + 3}",
        "train.epochs=40",
        *where,
        "--resume",
        "--follow",
    )
    assert done.returncode == 0, done.stdout
    assert commands.manifest(at.run())["step"] == step + 3


def test_a_mistake_on_the_cluster_is_2(machine: Machine, at: Home) -> None:
    done = machine.run("submit", str(at.recipe), "data.path=/nowhere/rows", "--follow")
    assert done.returncode == 2
    assert "error: " in done.stdout
    assert "/nowhere/rows" in done.stdout


def planted_stack(directory: Path) -> dict[str, str]:
    """An environment in which pyarrow says that it is an older one."""
    info = directory / "pyarrow-14.0.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 14.0.2\n")
    return {"PYTHONPATH": str(directory)}


def test_another_stack_is_refused_with_both_lists(
    machine: Machine, at: Home, tmp_path: Path
) -> None:
    sender = Machine(machine.state, planted_stack(tmp_path / "old"))
    done = sender.run("submit", str(at.recipe), "--follow")
    assert done.returncode == 2, done.stdout
    assert re.search(
        r"error: node \S+: pyarrow differ from the machine that submitted: it has python .*"
        r"pyarrow 25\.0\.1; the machine that submitted has python .*pyarrow 14\.0\.2", done.stdout
    )  # fmt: skip
    there = machine.node()["address"]
    alone = Machine(tmp_path / "alone/state")
    alone.state.mkdir(parents=True, mode=0o700)
    (alone.state / "auth_token").write_text(machine.token())
    (alone.state / "auth_token").chmod(0o600)
    done = alone.run("cluster", "join", there)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: join: {there} is on loopback, and such a cluster is of")


def test_a_node_of_another_stack_is_refused(at: Home, tmp_path: Path) -> None:
    outer = [own[0] for own in addresses().values() if not is_loopback(own[0])]
    if not outer:
        pytest.skip("this machine has no address but loopback")
    head = Machine(tmp_path / "head/state")
    other = Machine(tmp_path / "other/state", planted_stack(tmp_path / "old"))
    for each in (head, other):
        each.state.mkdir(parents=True, mode=0o700)
    with cluster(head, 1, outer[0]):
        (other.state / "auth_token").write_text(head.token())
        (other.state / "auth_token").chmod(0o600)
        joined = other.run("cluster", "join", head.node()["address"], "--workers", "1")
        try:
            assert joined.returncode == 0, joined.stderr
            done = head.run("train", str(at.recipe), "--address", "auto")
        finally:
            assert other.run("cluster", "down").returncode == 0
    assert done.returncode == 2
    assert re.search(
        rf"error: node {re.escape(outer[0])}: pyarrow differ from this machine: it has python .*"
        r"pyarrow 14\.0\.2; this machine has python .*pyarrow 25\.0\.1", done.stderr
    )  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """Port of an MLflow server that whatever password suits."""
    started = MlflowServer(tmp_path)
    started.start()
    yield started.port
    started.kill()


def test_a_password_in_the_tracking_uri_stays_in_the_run(
    machine: Machine, at: Home, server: int
) -> None:
    uri = f"http://me:{PLANTED}@127.0.0.1:{server}"
    change = f'tracking.uri="{uri}"'
    refused = machine.run("submit", str(at.recipe), change)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: tracking.uri: holds a password or a key, which every")
    assert PLANTED not in refused.stderr
    refused = machine.run("train", str(at.recipe), change, "--address", "auto")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        "error: tracking.uri: holds a password or a key on the command"
    )
    assert PLANTED not in refused.stderr
    recipe = at.directory / "secret.toml"
    recipe.write_text(re.sub("uri = .*", f'uri = "{uri}"', at.recipe.read_text()))
    done = machine.run("train", str(recipe), "--address", "auto", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["tracking"] == f"http://127.0.0.1:{server}"
    facts = MlflowClient(uri).get_run(document["run"])
    assert facts.data.metrics[
        "test/like/auc" if "test/like/auc" in facts.data.metrics else "like/auc"
    ]
    shown = str(facts.to_dictionary()) + done.stdout + done.stderr
    shown += api(machine, "/api/jobs/") + api(machine, "/api/train/v2/runs/v1")
    assert PLANTED not in shown
    logs, server_files = Path(machine.node()["files"]), at.directory / "artifacts"
    assert holding(PLANTED, logs, server_files, at.run() / "log") == []
