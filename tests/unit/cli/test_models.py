"""`models` and `evaluate` from the command line, over a registry in SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from prismrec.config.train import TrackingSection
from prismrec.jobs import export
from prismrec.serving.inference import InferenceModel
from prismrec.tracking.registry import Registry
from prismrec.tracking.run import MlflowTracker
from tests.helpers.command import run
from tests.unit.serving.world import RAW, SCHEMA, make_world, random_raw

Captured = pytest.CaptureFixture[str]
TAGS = {"data": "rows", "data_fingerprint": "f00"}


@pytest.fixture
def registered(section: TrackingSection, tmp_path: Path) -> str:
    """Tracking URI of a registry with `ctr` 1 (champion) and 2, of which 2 is better."""
    for version, (auc, scale) in enumerate(((0.7, 0.05), (0.72, 0.5)), 1):
        tracker = MlflowTracker.start(section, f"run {version}")
        tracker.close()
        bundle = make_world(scale).bundle(tmp_path / str(version))
        metrics = {"click/auc": auc, "click/gauc": float("nan")}
        Registry(section.uri).register(tracker.run_id, bundle, "ctr", metrics, TAGS)
    return section.uri


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows whose `bought` is always 1: its AUC has no value."""
    rows = 120
    (tmp_path / "data").mkdir()
    clicked = np.random.default_rng(1).integers(0, 2, rows)
    table = pa.table({**random_raw(rows, 2), "clicked": clicked, "bought": [1] * rows})
    pq.write_table(table.append_column("note", pa.array([0] * rows)), tmp_path / "data/a.parquet")
    SCHEMA.write(tmp_path / "data")
    return tmp_path / "data"


def strict_json(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_show_promote_and_export(registered: str, tmp_path: Path, capsys: Captured) -> None:
    assert run("models", "show", "ctr@champion", "--tracking-uri", registered, "--json") == 0
    shown = strict_json(capsys.readouterr().out)
    assert (shown["name"], shown["version"], shown["aliases"]) == ("ctr", 1, ["champion"])
    assert shown["metrics"]["click/auc"] == 0.7
    assert shown["tags"]["data_fingerprint"] == "f00"

    promote = (
        "models",
        "promote",
        "models:/ctr/2",
        "--metric",
        "click/auc",
        "--tracking-uri",
        registered,
    )
    assert run(*promote, "--min-gain", "0.05") == 2
    assert "0.720000 against 0.700000" in capsys.readouterr().err
    assert run("models", "show", "ctr/2", "--tracking-uri", registered) == 0
    table = capsys.readouterr().out
    assert "click/auc" in table
    assert "0.7200" in table
    assert run(*promote) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "0.720000" in captured.err
    assert run("models", "list", "--tracking-uri", registered, "--json") == 0
    aliases = {row["version"]: row["aliases"] for row in strict_json(capsys.readouterr().out)}
    assert aliases == {1: ["previous"], 2: ["champion"]}

    out = tmp_path / "copy"
    assert run("models", "export", "ctr@champion", out, "--tracking-uri", registered) == 0
    assert str(out) in capsys.readouterr().err
    logits = InferenceModel.load(out).predict_logits(RAW)
    assert torch.allclose(logits, make_world(0.5).expected_logits(RAW), atol=2e-6)
    assert run("models", "export", "ctr@champion", out, "--tracking-uri", registered) == 2
    assert "already there" in capsys.readouterr().err


def test_promote_warns_of_metrics_that_are_of_other_data(registered: str, capsys: Captured) -> None:
    promote = ("models", "promote", "ctr/2", "--metric", "click/auc", "--tracking-uri", registered)
    assert run(*promote, "--min-gain", "0.5") == 2
    assert "warning" not in capsys.readouterr().err  # both are of the same data
    client = MlflowClient(registered, registered)
    client.set_model_version_tag("ctr", "2", "prismrec.data_fingerprint", "b44")
    expected = (
        "warning: ctr version 2 and ctr version 1 were tested on different data, so their metrics may "
        "not compare; `prismrec evaluate models:/ctr/2 --data DIR --against models:/ctr/1` measures "
        "both on the same rows"
    )
    assert run(*promote) == 0
    warned, done = capsys.readouterr().err.splitlines()
    assert (warned, "0.720000 against 0.700000" in done) == (expected, True)


def test_export_with_other_types(
    registered: str, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "small"
    command = ("models", "export", "ctr/2", out, "--tracking-uri", registered)
    assert run(*command, "--tables", "int8") == 2  # the data of the training are gone
    assert "rows" in capsys.readouterr().err
    command = (*command, "--data", data, "--split", "all")
    assert run(*command, "--tables", "int9") == 2
    assert "--tables is one of fp32, fp16, bf16, int8, int4" in capsys.readouterr().err
    assert run(*command, "--tables", "int4") == 2
    assert "give --max-auc-change and --max-logloss-change" in capsys.readouterr().err
    bounds = ("--max-auc-change", "0", "--max-logloss-change", "0")
    assert run(*command, "--tables", "int4", *bounds) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "int4 tables with a fp32 dense part change the " in told
    assert not out.exists()

    loose = ("--max-auc-change", "0.1", "--max-logloss-change", "0.1")
    assert run(*command, "--tables", "int8", "--dense", "bf16", *loose, "--json") == 0
    report = strict_json(capsys.readouterr().out)
    with Registry(registered).resolve("ctr/2") as found:
        exact, made = InferenceModel.load(found.path), InferenceModel.load(out)
    assert (made.table_type, made.manifest.dense_type) == ("int8", "bf16")
    rows = random_raw(120, 2)
    difference = (made.predict_logits(rows) - exact.predict_logits(rows)).abs().max(0).values
    for task, largest in zip(made.tasks, difference, strict=True):
        assert report["parity"][f"{task}/max_logit_difference"] == pytest.approx(
            float(largest), rel=1e-3
        )
    assert report["parity"]["buy/auc_change"] is None  # all labels are equal
    assert report["rows"] == 120
    assert report["table_bytes"] == {"fp32": exact.table_bytes, "exported": made.table_bytes}
    assert {*report["latency"]["fp32"]} == {"1", "64", "1024"}
    assert strict_json((out / "export.json").read_text()) == report
    wrong = ("--format", "onnx")
    assert run(*command, *wrong) == 2
    assert "--format is one of torch.export, torchscript" in capsys.readouterr().err
    again = ("models", "export", str(out), tmp_path / "next", "--tables", "fp16")
    assert run(*again, "--data", data, "--split", "all") == 2
    assert "has int8 tables and a bf16 dense part" in capsys.readouterr().err


def test_an_export_appears_when_it_is_checked(
    data: Path, section: TrackingSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, there = tmp_path / "small", []

    def measured(*_: Any) -> dict[str, Any]:
        there.append(out.exists())
        return {}

    monkeypatch.setattr(export, "measure_latency", measured)
    model = make_world().bundle(tmp_path)
    loose = ("--max-auc-change", "1", "--max-logloss-change", "1", "--tracking-uri", section.uri)
    command = ("models", "export", model, out, "--tables", "int8", "--data", data, *loose)
    assert run(*command, "--split", "all", "--json") == 0
    assert there == [False]
    assert InferenceModel.load(out).table_type == "int8"


def test_evaluate_against_another_version(registered: str, data: Path, capsys: Captured) -> None:
    arguments = (
        "evaluate",
        "ctr/2",
        "--data",
        data,
        "--split",
        "all",
        "--tracking-uri",
        registered,
    )
    arguments = (*arguments, "--against", "ctr/1")
    assert run(*arguments, "--json") == 0
    document = strict_json(capsys.readouterr().out)
    assert (document["model"], document["rows"]) == ("models:/ctr/2", 120)
    against = document["against"]
    assert against["model"] == "ctr/1"
    assert against["click"]["auc"] == pytest.approx(document["test"]["click/auc"])
    assert against["click"]["difference"] == pytest.approx(
        against["click"]["auc"] - against["click"]["rival_auc"]
    )
    assert against["click"]["low"] < against["click"]["difference"] < against["click"]["high"]
    assert document["test"]["buy/auc"] is None  # all labels are equal
    assert against["buy"]["difference"] is None
    assert document["test"]["buy/rows"] == 120

    assert run(*arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{against['click']['difference']:.4f}" in printed
    assert "AUC of ctr/1" in printed
