"""The registry over a real SQLite MLflow: versions, aliases, promotion, files, and serving."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from prismrec.cluster.network import free_port
from prismrec.config import UserError
from prismrec.config.train import TrackingSection
from prismrec.serving.inference import InferenceModel
from prismrec.tracking.registry import ModelVersionInfo, Registry
from prismrec.tracking.run import MlflowTracker
from tests.unit.serving.world import RAW, make_world, random_raw

TAGS = {"data": "s3://key:secret@bucket/rows", "data_fingerprint": "f00"}


def start_run(section: TrackingSection) -> str:
    tracker = MlflowTracker.start(section, "trained")
    tracker.close()
    return tracker.run_id


def register(
    section: TrackingSection, folder: Path, auc: float, name: str = "ctr"
) -> ModelVersionInfo:
    folder.mkdir(exist_ok=True)
    bundle = make_world().bundle(folder)
    metrics = {"click/auc": auc, "click/gauc": float("nan")}
    return Registry(section.uri).register(start_run(section), bundle, name, metrics, TAGS)


def test_a_run_registers_the_same_copy_once(section: TrackingSection, tmp_path: Path) -> None:
    registry, run, world = Registry(section.uri), start_run(section), make_world()
    first = registry.register(run, world.bundle(tmp_path), "ctr", {"click/auc": 0.7}, TAGS)
    (tmp_path / "again").mkdir()
    again = world.bundle(tmp_path / "again")
    assert registry.register(run, again, "ctr", {"click/auc": 0.7}, TAGS) == first
    assert registry.register(run, again, "another", {"click/auc": 0.7}, TAGS).version == 1
    assert registry.register(start_run(section), again, "ctr", {}, TAGS).version == 2
    (tmp_path / "half").mkdir()
    half = world.bundle(tmp_path / "half", "fp16")
    assert registry.register(run, half, "ctr", {"click/auc": 0.7}, TAGS).version == 3


def test_versions_aliases_and_promotion(section: TrackingSection, tmp_path: Path) -> None:
    registry = Registry(section.uri)
    assert registry.list_models() == []
    before = dict(os.environ)
    first = register(section, tmp_path / "a", auc=0.70)
    assert dict(os.environ) == before  # MLflow's setters would point child processes elsewhere
    assert (first.version, first.aliases, first.data) == (1, ("champion",), "s3://bucket/rows")
    assert first.metrics["click/auc"] == 0.70
    tags = dict(first.tags)
    assert len(tags.pop("answers")) == 64
    assert tags == {"data_fingerprint": "f00", "recipe": "ctr", "table_type": "fp32"}
    second = register(section, tmp_path / "b", auc=0.69)
    third = register(section, tmp_path / "c", auc=0.72)
    other = register(section, tmp_path / "d", auc=0.5, name="another")
    assert [(m.name, m.version) for m in registry.list_models()] == [
        ("another", 1), ("ctr", 3), ("ctr", 2), ("ctr", 1),
    ]  # fmt: skip
    assert other.row() == {
        "name": "another", "version": 1, "aliases": ["champion"], "run": other.run,
        "data": "s3://bucket/rows",
    }  # fmt: skip

    with pytest.raises(
        UserError, match=r"not promoted to 'champion': .*0\.690000 against 0\.700000"
    ):
        registry.promote(second.uri, "click/auc")
    with pytest.raises(UserError, match=r"0\.720000 against 0\.700000 .*at least 0\.05 is asked"):
        registry.promote(third.uri, "click/auc", min_gain=0.05)
    with pytest.raises(
        UserError, match=r"has no test metric 'click/aux'; did you mean 'click/auc'"
    ):
        registry.promote(third.uri, "click/aux")
    assert registry.promote(third.uri, "click/auc", min_gain=0.01).is_allowed
    assert registry.show("models:/ctr@champion").version == 3
    assert registry.show("ctr@previous").version == 1
    assert (
        registry.promote("ctr@champion", "click/auc").reason
        == "ctr version 3 is 'champion' already"
    )
    assert registry.promote("ctr/2", "click/auc", to="challenger").is_allowed
    assert registry.promote("ctr@challenger", "click/auc", force=True).is_allowed
    assert registry.show("ctr/2").aliases == ("challenger", "champion")
    assert registry.show("ctr@previous").version == 3
    assert registry.show(second.run).version == 2


def test_files_by_every_name_of_a_model(section: TrackingSection, tmp_path: Path) -> None:
    info = register(section, tmp_path / "a", auc=0.7)
    registry = Registry(section.uri)
    expected = make_world().expected_logits(RAW)
    for model in (
        "models:/ctr@champion",
        "models:/ctr/1",
        info.run,
        str(tmp_path / "a" / "bundle-fp32"),
    ):
        with registry.resolve(model) as found:
            assert found.is_bundle
            logits = InferenceModel.load(found.path).predict_logits(RAW)
        assert torch.allclose(logits, expected, atol=2e-6)
        assert found.path.is_dir()  # it is where the registry keeps it
    with registry.resolve(str(tmp_path)) as found:
        assert found.is_bundle is False
    assert tmp_path.is_dir()
    out = registry.export("ctr@champion", tmp_path / "out")
    assert torch.allclose(InferenceModel.load(out).predict_logits(RAW), expected, atol=2e-6)
    with pytest.raises(UserError, match=r"out: already there; choose another directory"):
        registry.export("ctr@champion", tmp_path / "out")


def test_names_of_no_model(section: TrackingSection, tmp_path: Path) -> None:
    register(section, tmp_path / "a", auc=0.7)
    registry = Registry(section.uri)
    for model, expected in {
        "models:/crt@champion": r"models:/crt: no such model at sqlite:.*did you mean 'ctr'",
        "ctr@chmpion": r"models:/ctr@chmpion: no such alias; did you mean 'champion'",
        "ctr/9": r"^ctr has no version 9; it has 1$",
        "crt/1": r"models:/crt/1: no such model at sqlite:.*did you mean 'ctr'",
        "somewhere": r"'somewhere' is no model; give models:/NAME@ALIAS",
        "0" * 32: r"run 0+ has registered no model",
    }.items():
        with pytest.raises(UserError, match=expected), registry.resolve(model):
            pass
    with pytest.raises(UserError, match=r"not an inference copy"):
        registry.register("0" * 32, tmp_path, "ctr", {}, {})


def test_a_version_that_is_not_there_is_told_with_the_newest_that_are(
    section: TrackingSection,
) -> None:
    registry = Registry(section.uri)
    client = mlflow.MlflowClient(section.uri, section.uri)
    client.create_registered_model("ctr")
    for _ in range(4):
        client.create_model_version("ctr", "nowhere")
    with pytest.raises(UserError, match=r"^ctr has no version 5; it has 4, 3, 2, \.\.\.$"):
        registry.promote("models:/ctr/5", "click/auc")


def test_the_logged_model_is_code_and_plain_numbers(
    section: TrackingSection, tmp_path: Path
) -> None:
    info = register(section, tmp_path / "a", auc=0.7)
    with Registry(section.uri).resolve(info.uri) as found:
        logged = found.path.parent.parent
    files = sorted(
        path.relative_to(logged).as_posix() for path in logged.rglob("*") if path.is_file()
    )
    assert files == [
        "MLmodel",
        "artifacts/bundle-fp32/bundle.json",
        "artifacts/bundle-fp32/head.safetensors",
        *(f"artifacts/bundle-fp32/tables/000{index}.safetensors" for index in range(3)),
        "conda.yaml",
        "input_example.json",
        "pyfunc.py",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ]
    pinned = (logged / "requirements.txt").read_text().split()
    assert {"prismrec", "torch", "mlflow"} < {line.partition("==")[0] for line in pinned}
    assert all("==" in line and "+" not in line for line in pinned)
    model = mlflow.pyfunc.load_model(str(logged))
    assert model.metadata.get_input_schema().input_names() == [
        "user_id", "item", "hist", "tags", "hist_w", "age", "is_new",
    ]  # fmt: skip
    assert model.metadata.get_output_schema().input_names() == ["click", "buy"]
    example = model.predict(model.input_example)
    assert example.shape == (2, 2)
    _check_predictions(model)


def _check_predictions(model: mlflow.pyfunc.PyFuncModel) -> None:
    raw = random_raw(12)
    expected = torch.sigmoid(make_world().expected_logits(raw)).numpy()
    first = {name: values[0] for name, values in raw.items()}
    assert np.allclose(model.predict(pd.DataFrame(raw)), expected, atol=1e-6)
    assert np.allclose(model.predict(raw), expected, atol=1e-6)
    assert np.allclose(model.predict(first), expected[:1], atol=1e-6)
    awkward = torch.sigmoid(make_world().expected_logits(RAW)).numpy()
    assert np.allclose(model.predict(pd.DataFrame(RAW)), awkward, atol=1e-6)


@pytest.fixture
def served(section: TrackingSection, tmp_path: Path) -> Iterator[str]:
    """Address of `mlflow models serve` on the registered champion."""
    register(section, tmp_path / "a", auc=0.7)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/ctr@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": section.uri,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(server, address, tmp_path / "serve.log")
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{address}/ping", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server did not come up:\n{log.read_text()}")


def _ask(address: str, columns: dict[str, Any]) -> tuple[int, str]:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    body = json.dumps({"dataframe_split": {"columns": list(columns), "data": rows}}).encode()
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_serving_over_http(served: str) -> None:
    for raw in (random_raw(10), RAW):
        status, text = _ask(served, raw)
        assert status == 200, text
        got = pd.DataFrame(json.loads(text)["predictions"])[["click", "buy"]]
        expected = torch.sigmoid(make_world().expected_logits(raw)).numpy()
        assert np.allclose(got, expected, atol=1e-6)
    raw = random_raw(3)
    for column, wrong, expected in (
        ("item", None, "Model is missing inputs ['item']"),
        ("item", ["a", "b", "c"], "column 'item' needs integers, but the request has: "),
        ("user_id", [0.5, 1.0, 2.0], "column 'user_id' needs integers"),
        ("hist", [1, 2, 3], "hist"),
        ("tags", [["x"], [], []], "column 'tags' needs integers"),
        ("age", ["old", 1, 2], "column 'age' needs numbers"),
    ):
        others = {name: values for name, values in raw.items() if name != column}
        status, text = _ask(served, others if wrong is None else {**others, column: wrong})
        assert (status, expected in json.loads(text)["message"]) == (400, True), text
