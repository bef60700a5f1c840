"""A run in a real MLflow, over SQLite and over HTTP."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from prismrec.config import UserError
from prismrec.config.train import TrackingSection
from prismrec.serving.bundle import read_manifest
from prismrec.tracking.registry import Registry
from prismrec.tracking.run import MlflowTracker, environment, git_commit
from tests.helpers.mlflow_server import MlflowServer
from tests.unit.serving.world import make_world


def test_a_run_holds_what_was_logged(section: TrackingSection, tmp_path: Path) -> None:
    tracker = MlflowTracker.start(section, "first", {"purpose": "test"})
    tracker.sample_system(interval_s=60)
    tracker.log_parameters(
        {f"train.p{i}": i for i in range(230)}
        | {"uri": "http://me:hunter2@host", "none": None, "long": "x" * 9000}
    )
    for step in range(5):
        tracker.log_metrics({"click/auc": step / 10, "loss": 1.0 - step / 10}, step)
    slices = {f"test/click/auc/domain={each}": each / 2000 for each in range(1500)}
    tracker.log_metrics(slices | {"test/click/ne": float("nan")}, 5)
    plot = tmp_path / "loss.png"
    plot.write_bytes(b"png")
    tracker.log_file(plot, "plots")
    tracker.log_text("table_wise", "plan.txt")
    assert tracker.close("FINISHED")

    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["purpose"] == "test"
    assert run.data.params["train.p229"] == "229"
    assert run.data.params["uri"] == "http://host"
    assert (run.data.params["none"], len(run.data.params["long"])) == ("", 6000)
    history = client.get_metric_history(tracker.run_id, "click/auc")
    assert [(each.step, each.value) for each in history] == [(i, i / 10) for i in range(5)]
    assert run.data.metrics["test/click/auc/domain:1499"] == 1499 / 2000
    assert math.isnan(run.data.metrics["test/click/ne"])
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0
    files = tmp_path / "track" / "mlartifacts" / tracker.run_id / "artifacts"
    assert (files / "plots" / "loss.png").read_bytes() == b"png"
    assert (files / "plan.txt").read_text() == "table_wise"
    assert json.loads((files / "environment.json").read_text()) == environment()


def test_a_worker_adds_to_a_run_and_leaves_its_status(section: TrackingSection) -> None:
    driver = MlflowTracker.start(section, "shared")
    worker = MlflowTracker.attach(driver.uri, driver.run_id)
    worker.log_metrics({"loss": 0.5}, 3)
    assert worker.close("FINISHED")
    with pytest.raises(UserError, match="start an MLflow server and give its address"):
        MlflowTracker.attach("sqlite:////nowhere/mlflow.db", driver.run_id)
    client = MlflowClient(driver.uri)
    assert client.get_run(driver.run_id).info.status == "RUNNING"
    assert driver.close("FAILED")
    run = client.get_run(driver.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FAILED", 0.5)


def test_a_run_that_was_killed_runs_again(section: TrackingSection) -> None:
    first = MlflowTracker.start(section, "stopped")
    first.log_metrics({"loss": 0.5}, 3)
    assert first.close("KILLED")
    client = MlflowClient(first.uri)
    again = MlflowTracker.resume(section, first.run_id)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.log_metrics({"loss": 0.25}, 6)
    assert again.close()
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 0.25)
    history = client.get_metric_history(first.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(3, 0.5), (6, 0.25)]


def test_a_run_that_the_server_does_not_know_cannot_go_on(section: TrackingSection) -> None:
    with pytest.raises(UserError, match=r"tracking.uri: run 0{32} cannot go on at sqlite"):
        MlflowTracker.resume(section, "0" * 32)


def test_a_changed_parameter_does_not_hold_up_the_rest(section: TrackingSection) -> None:
    tracker = MlflowTracker.start(section, "twice")
    tracker.log_parameters({"a": 1})
    tracker.log_parameters({"a": 2})
    tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.close(timeout_s=20)
    data = MlflowClient(tracker.uri).get_run(tracker.run_id).data
    assert (data.params["a"], data.metrics["loss"]) == ("1", 1.0)


def test_a_run_outlives_a_server_that_is_away_and_its_model_is_registered_there(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = server.uri
    tracker = MlflowTracker.start(TrackingSection(uri=uri, experiment="http"), "patient")
    tracker.log_metrics({"loss": 0.0}, 0)
    assert tracker.flush()
    server.kill()
    started = time.monotonic()
    for step in range(1, 20):
        tracker.log_metrics({"loss": step / 10}, step)
    assert time.monotonic() - started < 0.5
    assert not tracker.flush(timeout_s=0.3)
    server.start()
    assert tracker.close(timeout_s=60)
    history = MlflowClient(uri).get_metric_history(tracker.run_id, "loss")
    assert [each.value for each in history] == [step / 10 for step in range(20)]

    bundle = make_world().bundle(tmp_path)
    registry = Registry(uri)
    registry.register(tracker.run_id, bundle, "ctr", {"click/auc": 0.7}, {"data": "rows"})
    with registry.resolve("models:/ctr@champion") as resolved:
        assert read_manifest(resolved.path) == read_manifest(bundle)
        assert tmp_path not in resolved.path.parents  # it came over the wire
    assert not resolved.path.exists()
    assert not resolved.path.parent.exists()


def losses(tracker: MlflowTracker) -> list[tuple[int, float]]:
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "loss")
    return sorted((each.step, each.value) for each in history)


def kept_line(step: int) -> str:
    return json.dumps([["loss", step / 10, 1_700_000_000_000 + step, step]]) + "\n"


def test_kept_metrics_are_sent_but_for_a_torn_line(
    section: TrackingSection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "undelivered.jsonl"
    kept.write_text(kept_line(1) + kept_line(2) + kept_line(3)[:20])
    tracker = MlflowTracker.start(section, "torn")
    tracker.kept = kept
    assert tracker.send_kept(kept) == 2
    assert "undelivered.jsonl: 1 lines are damaged" in caplog.text
    assert tracker.close()
    assert losses(tracker) == [(1, 0.1), (2, 0.2)]
    assert not list(tmp_path.glob("undelivered*"))
    assert MlflowTracker.resume(section, tracker.run_id).send_kept(kept) == 0


def test_kept_metrics_outlive_a_process_that_is_killed_and_a_server_that_stays_away(
    section: TrackingSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "undelivered.jsonl"
    kept.write_text(kept_line(1) + kept_line(2)[:20])
    first = MlflowTracker.start(section, "away")
    assert first.flush()

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        killed = MlflowTracker.resume(section, first.run_id)
        assert killed.send_kept(kept) == 1  # and that is the end of it
        kept.write_text(kept_line(2))
        second = MlflowTracker.resume(section, first.run_id)
        second.kept = kept
        assert second.send_kept(kept) == 2
        second.log_metrics({"loss": 0.3}, 3)
        assert not second.close(timeout_s=0.1)
        assert [path.name for path in tmp_path.glob("undelivered*")] == [kept.name]
        killed._delivery.close(0)
    with kept.open("a") as file:
        file.write(kept_line(9)[:20])
    tracker = MlflowTracker.resume(section, first.run_id)
    tracker.kept = kept
    assert tracker.send_kept(kept) == 3
    assert tracker.close()
    assert losses(tracker) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert not list(tmp_path.glob("undelivered*"))


def test_a_server_that_never_was_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    section = TrackingSection(uri="http://me:secret@127.0.0.1:9", experiment="x")
    with pytest.raises(
        UserError, match=r"no run could be started at http://127.0.0.1:9 "
    ) as caught:
        MlflowTracker.start(section, "x")
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_an_error(section: TrackingSection) -> None:
    client = MlflowClient(section.uri)
    client.delete_experiment(client.create_experiment("tests"))
    with pytest.raises(UserError, match=r"'tests' was deleted .*mlflow experiments restore -x"):
        MlflowTracker.start(section, "x")


def test_the_environment_holds_versions_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    facts: dict[str, Any] = environment()
    assert set(facts) == {"git_commit", "python", "platform", "packages"}
    assert facts["packages"]["mlflow"].startswith("3.")
    assert "hunter2" not in json.dumps(facts)


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
