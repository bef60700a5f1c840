"""A search whose trial is killed, and which is killed itself, ends as one that was left alone would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from prismrec.config import load
from tests.ray import commands
from tests.ray.commands import PROGRAM, Home, await_, environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

RATE = "train.optimizer.learning_rate"


def home(directory: Path, *rates: float) -> Home:
    """A recipe with validation rows, one worker and many short evaluations, and a space of learning rates."""
    made = commands.home(directory, commands.world(directory))
    text = made.recipe.read_text()
    for old, new in (
        ('train = ["day <= 3"]', 'train = ["day <= 3"]\nvalid = ["day == 4"]'),
        ('test = ["day >= 4"]', 'test = ["day >= 5"]'),
        ("bootstrap = 0", "bootstrap = 0\nevery_steps = 150"),
        ("epochs = 2", "epochs = 8"),
        ("every_steps = 3", "every_steps = 50"),
        ("count = 2", "count = 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    made.recipe.write_text(text)
    (directory / "space.toml").write_text(f"{RATE} = {{ choice = {list(rates)} }}\n")
    return made


def tune(at: Home, *arguments: str) -> subprocess.Popen[str]:
    words = ["tune", str(at.recipe), "--space", str(at.directory / "space.toml"), *arguments]
    return subprocess.Popen(
        [PROGRAM, *words], cwd=at.directory, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def search_of(at: Home) -> Path:
    await_(lambda: bool(list(at.directory.glob("runs/small-tune-*/trial-0002"))), "a search")
    (found,) = at.directory.glob("runs/small-tune-*")
    return found


def facts(search: Path, number: int) -> dict[str, Any]:
    path = search / f"trial-{number:04d}" / "run.json"
    return json.loads(path.read_text()) if path.exists() else {}


def trial_process(of: int) -> psutil.Process:
    """The process that trains a trial, below the command's."""
    found: list[psutil.Process] = []

    def look() -> bool:
        below = psutil.Process(of).children(recursive=True)
        found[:] = [each for each in below if "ImplicitFunc" in " ".join(each.cmdline())]
        return bool(found)

    await_(look, "process of a trial")
    return found[0]


@pytest.mark.slow
def test_killed_trials_and_a_killed_search_lose_nothing(tmp_path: Path) -> None:
    at = home(tmp_path, 3e-3, 1e-2, 1e38)
    process = tune(at, "--trials", "3", "--at-once", "1", "--grace", "50")
    search = search_of(at)
    drawn = [each[RATE] for each in json.loads((search / "run.json").read_text())["trials"]]
    good = [number for number, rate in enumerate(drawn) if rate < 1]
    first, last = good
    saved = search / f"trial-{first:04d}" / "checkpoints"
    await_(lambda: bool(list(saved.glob("step-*/manifest.json"))), "a checkpoint of a trial")
    kept = max(int(each.parent.name[5:]) for each in saved.glob("step-*/manifest.json"))
    run = facts(search, first)["run"]
    trial_process(process.pid).send_signal(signal.SIGKILL)
    await_(
        lambda: facts(search, first).get("state") == "finished", "end of the trial that was killed"
    )
    assert facts(search, first)["run"] == run
    events = (search / f"trial-{first:04d}" / "events.jsonl").read_bytes()
    told = [json.loads(line) for line in events.splitlines()]
    steps = [each["step"] for each in told if "train/loss" in each.get("values", {})]
    before = [step for step in steps if step <= kept]
    assert before == list(range(5, kept + 1, 5))  # no step up to the checkpoint was done again
    await_(lambda: "run" in facts(search, last), "start of the other trial")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert facts(search, last).get("state") is None

    process = tune(at, "--trials", "3", "--at-once", "1", "--grace", "50", "--resume", "--json")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["directory"] == str(search)
    assert (search / f"trial-{first:04d}" / "events.jsonl").read_bytes() == events
    states = {each["values"][RATE]: each["state"] for each in document["trials"]}
    assert states == {3e-3: "finished", 1e-2: "finished", 1e38: "failed"}
    (failed,) = (each for each in document["trials"] if each["state"] == "failed")
    assert "is not finite" in failed["error"]
    check_best(at, document)
    check_runs(at, document)
    counted = list((search / "cache/prismrec/counts").iterdir())
    assert len(counted) == 3  # train, valid and test rows, once for all trials


def test_a_search_of_one_trial(tmp_path: Path) -> None:
    at = home(tmp_path, 1e-2)
    process = tune(at, "--trials", "1", "--json", "train.steps=20", "evaluate.every_steps=10")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    document = json.loads(out)
    (trial,) = document["trials"]
    child = MlflowClient(f"sqlite:///{at.directory}/mlflow.db").get_run(trial["run"])
    assert trial["state"] == child.info.status.lower() == "finished"
    assert child.data.metrics["train/loss"] > 0  # recorded by the worker
    assert document["best"]["registered"] == "models:/small/1"


def check_best(at: Home, document: dict[str, Any]) -> None:
    """The best is registered, and its recipe trains."""
    best = max(document["trials"], key=lambda each: each["best"] or 0)
    assert document["best"]["number"] == best["number"]
    recipe = load(document["best"]["recipe"])
    assert recipe.train.optimizer.learning_rate == best["values"][RATE]
    assert recipe.name == "small"
    done = subprocess.run(
        [PROGRAM, "train", document["best"]["recipe"], "train.steps=2", "--no-ray", "--json"],
        cwd=at.directory, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "models:/small/2"


def check_runs(at: Home, document: dict[str, Any]) -> None:
    """Every trial is a child run, its state and metrics in it; plot and tables are with the parent."""
    client = MlflowClient(f"sqlite:///{at.directory}/mlflow.db")
    parent = client.get_run(document["run"])
    assert parent.info.status == "FINISHED"
    assert {each.path for each in client.list_artifacts(document["run"])} >= {
        "best.toml",
        "trials.json",
    }
    assert [each.path for each in client.list_artifacts(document["run"], "plots")] == [
        "plots/trials.png"
    ]
    assert parent.data.params[f"space.{RATE}"] == "choice [0.003, 0.01, 1e+38]"
    for each in document["trials"]:
        child = client.get_run(each["run"])
        assert child.data.tags["mlflow.parentRunId"] == document["run"]
        assert child.info.status == ("FAILED" if each["state"] == "failed" else "FINISHED")
        assert float(child.data.params[RATE]) == each["values"][RATE]
        if each["state"] == "finished":
            history = client.get_metric_history(each["run"], "valid/like/auc")
            assert max(point.value for point in history) == pytest.approx(each["best"])
    version = client.get_model_version("small", "1")
    assert version.run_id == document["best"]["run"]
