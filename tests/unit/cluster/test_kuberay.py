"""The manifests and the image: fields that exist, versions that are ours, names that meet."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

import prismrec
from prismrec.cli.main import app
from prismrec.cluster.versions import PINS
from tests.helpers.kubernetes import SCHEMAS
from tests.helpers.source_tree import ROOT

FOLDER = ROOT / "cluster/kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))
DOCUMENTS = [
    (path, document) for path in FILES for document in yaml.safe_load_all(path.read_text())
]
IDS = [f"{path.name}-{document['kind']}" for path, document in DOCUMENTS]
PART = ("app.kubernetes.io/part-of", "prismrec")


def everywhere(tree: Any, key: str) -> Iterator[Any]:
    """Values of a key at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from everywhere(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from everywhere(value, key)


def problems(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMAS[document["kind"]])
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_everything_asked_for_is_there() -> None:
    kinds = {(path.name, document["kind"]) for path, document in DOCUMENTS}
    assert kinds == {
        ("cluster-cpu.yaml", "RayCluster"), ("cluster-gpu.yaml", "RayCluster"),
        ("job-cpu.yaml", "RayJob"), ("job-gpu.yaml", "RayJob"),
        ("mlflow.yaml", "Deployment"), ("mlflow.yaml", "Service"),
        ("network.yaml", "NetworkPolicy"), ("storage.yaml", "PersistentVolumeClaim"),
    }  # fmt: skip


@pytest.mark.parametrize(("path", "document"), DOCUMENTS, ids=IDS)
def test_every_field_exists(path: Path, document: dict[str, Any]) -> None:
    assert problems(document) == []


def test_a_wrong_field_is_seen() -> None:
    cluster = next(d for _, d in DOCUMENTS if d["kind"] == "RayCluster")
    for change in ("rayversion", "authOption"):
        wrong = copy.deepcopy(cluster)
        wrong["spec"][change] = "x"
        assert any(change in each for each in problems(wrong))
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # must be text
    assert any("0 is not of type 'string'" in each for each in problems(wrong))
    del wrong["spec"]["authOptions"]
    assert any("'authOptions' is a required property" in each for each in problems(wrong))


@pytest.mark.parametrize(("path", "document"), DOCUMENTS, ids=IDS)
def test_versions_images_and_names_are_ours(path: Path, document: dict[str, Any]) -> None:
    assert set(everywhere(document, "rayVersion")) <= {PINS["ray"]}
    assert {str(name) for name in everywhere(document, "secretName")} <= {"prismrec-token"}
    is_gpu = path.name.endswith("-gpu.yaml")
    expected = f"prismrec:{prismrec.__version__}-{'gpu' if is_gpu else 'cpu'}"
    assert set(everywhere(document, "image")) <= {expected}
    claims = {d["metadata"]["name"] for _, d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    assert set(everywhere(document, "claimName")) <= claims
    for pod in everywhere(document, "template"):
        assert PART in pod["metadata"]["labels"].items()
        volumes = {each["name"] for each in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert {each["name"] for each in container["volumeMounts"]} == volumes
    for amounts in everywhere(document, "limits"):
        assert amounts.get("nvidia.com/gpu", "8") == "8"


def test_a_pod_of_gpus_takes_the_whole_node_and_one_of_the_head_none() -> None:
    for path, document in DOCUMENTS:
        for group in everywhere(document, "workerGroupSpecs"):
            (container,) = group[0]["template"]["spec"]["containers"]
            gpus = container["resources"]["limits"].get("nvidia.com/gpu")
            assert gpus == ("8" if path.name.endswith("-gpu.yaml") else None)
            assert group[0]["minReplicas"] < group[0]["maxReplicas"]
        for head in everywhere(document, "headGroupSpec"):
            assert head["rayStartParams"]["num-cpus"] == "0"
            assert "nvidia.com/gpu" not in str(head)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_job_brings_the_cluster_that_stays(kind: str) -> None:
    specs = {d["kind"]: d["spec"] for path, d in DOCUMENTS if path.name.endswith(f"-{kind}.yaml")}
    assert specs["RayJob"]["rayClusterSpec"] == specs["RayCluster"]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_command_of_a_job_is_one_of_ours(kind: str) -> None:
    (job,) = yaml.safe_load_all((FOLDER / f"job-{kind}.yaml").read_text())
    program, name, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, name) == ("prismrec", "train")
    command: Any = typer.main.get_command(app)
    parsed = command.commands[name].make_context(name, words).params
    assert (parsed["address"], parsed["workers"]) == ("auto", 16)
    service = next(d for _, d in DOCUMENTS if d["kind"] == "Service")
    uri = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert f"tracking.uri={uri}" in parsed["overrides"]
    assert ("train.device=cuda" in parsed["overrides"]) == (kind == "gpu"), "the head has no GPU"
    assert list(everywhere(job, "mountPath")).count("/shared") == 2
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    from prismrec.jobs.submit import STOP_S

    assert environment == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}


def test_the_service_finds_the_server_and_the_server_knows_its_name() -> None:
    found = {d["kind"]: d for path, d in DOCUMENTS if path.name == "mlflow.yaml"}
    pod, service = found["Deployment"]["spec"]["template"], found["Service"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    port = service["spec"]["ports"][0]["port"]
    assert (
        container["ports"][0]["containerPort"] == service["spec"]["ports"][0]["targetPort"] == port
    )
    assert f"--port={port}" in container["args"]
    (hosts,) = [word for word in container["args"] if word.startswith("--allowed-hosts=")]
    assert f"{service['metadata']['name']}:{port}" in hosts.partition("=")[2].split(",")


def test_no_manifest_holds_a_secret() -> None:
    assert [d["kind"] for _, d in DOCUMENTS if d["kind"] == "Secret"] == []
    assert not any(re.search(r"password|auth_token:", path.read_text(), re.I) for path in FILES)


def test_the_image_installs_the_stack_in_order() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    installs = re.findall(r"pip install (?:.*)(?:-r (\S+)|( \.) )", text)
    names = [name or place.strip() for name, place in installs]
    assert names == ["requirements/torch.txt", "requirements/stack.txt",
                     "requirements/sharding-${PLATFORM}.txt", "."]  # fmt: skip
    for platform in ("cpu", "gpu"):
        assert (ROOT / f"requirements/sharding-{platform}.txt").is_file()
        assert f"prismrec:{prismrec.__version__}-{platform}" in text
    assert "--no-deps -r requirements/sharding" in text
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    copied = {
        word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()
    }
    assert {"platform", "embeddings", "models", "jobs", "cluster", "setup.cfg"} <= copied
    assert re.search(r"^FROM python:3\.11", text, re.MULTILINE)
    assert (
        f"useradd --create-home --uid {next(everywhere([d for _, d in DOCUMENTS], 'runAsUser'))} "
        in text
    )
