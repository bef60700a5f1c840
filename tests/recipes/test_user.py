"""A new user's first hour, from the wheel, in an empty directory: real Ray, real MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.recipes.conftest import run_command


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_demo_then_the_registry(installed: Path, tmp_path: Path) -> None:
    prismrec = installed / "prismrec"
    demo = run_command(tmp_path, prismrec, "demo", "--rows", "12000", "--json", timeout_s=300)
    assert demo.returncode == 0, demo.stderr
    document = json.loads(demo.stdout)
    assert document["model"] == "models:/demo/1"
    for task in ("like", "finish"):
        auc = document["test"][f"{task}/auc"]
        assert 0.5 < auc < document["best_auc"][task]
        assert 0.7 < document["test"][f"{task}/pcoc"] < 1.4
        assert {f"{task}/gauc", f"{task}/logloss", f"{task}/ne"} <= set(document["test"])
    assert document["examples_per_second"] > 0

    listed = json.loads(run_command(tmp_path, prismrec, "models", "list", "--json").stdout)
    assert [(m["name"], m["version"], m["aliases"]) for m in listed] == [("demo", 1, ["champion"])]
    assert listed[0]["run"] == document["run"]

    data = Path("out/demo/data")
    done = run_command(
        tmp_path, prismrec, "evaluate", "models:/demo@champion", "--data", data, "--json"
    )
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for name, value in document["test"].items():
        if name in again["test"]:  # the trainer may have computed in bfloat16
            assert again["test"][name] == pytest.approx(value, abs=3e-3)

    done = run_command(
        tmp_path, prismrec, "predict", "models:/demo@champion", "--data", data, "--out", "scored"
    )
    assert done.returncode == 0, done.stderr
    _check_predictions(tmp_path / data, tmp_path / "scored")


def _check_predictions(data: Path, scored: Path) -> None:
    """One probability per task and row, rows and keys as they stood."""
    names = [path.name for path in sorted(data.glob("*.parquet"))]
    assert [path.name for path in sorted(scored.glob("*.parquet"))] == names
    for name in names:
        rows, answers = pq.read_table(data / name), pq.read_table(scored / name)
        assert answers["user_id"].equals(rows["user_id"])
        assert answers["item_id"].equals(rows["item_id"])
        for task in ("like", "finish"):
            values = answers[task].to_numpy()
            assert ((values > 0) & (values < 1)).all()
            assert values.std() > 0.01


def test_functions_do_what_the_commands_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prismrec
    from prismrec.data.world import write_world

    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "world", rows=6000, days=7, seed=2)
    recipe = Path(__file__).parents[2] / "jobs/recipes/demo.toml"
    small = ["data.path=world", "workers.count=1", "data.global_batch_size=256"]
    small += ["features.domain=device", "evaluate.every_steps=3"]
    result = prismrec.train(prismrec.load(recipe, [*small, "train.steps=6"]), ray=False)
    assert result.steps == 6
    _check_recorded(result)
    report = prismrec.evaluate(result.published.model, "world")
    assert report["test"]["like/auc"] == pytest.approx(result.metrics["like/auc"], abs=5e-3)
    assert prismrec.predict(result.published.model, "world", "scored")["rows"] == 6000
    with pytest.raises(prismrec.UserError, match="no such model"):
        prismrec.evaluate("models:/dmeo@champion", "world")

    longer = prismrec.load(recipe, [*small, "train.steps=9"])
    again = prismrec.train(longer, ray=False, resume=True)
    assert (again.steps, again.published.version) == (9, 2)
    assert again.files == result.files


def _check_recorded(result) -> None:
    """Everything the run found is in MLflow: metrics, slices, parameters, plots, plan."""
    from mlflow import MlflowClient

    client = MlflowClient(result.tracking)
    run = client.get_run(result.published.run_id)
    assert run.data.metrics["test/like/auc"] == pytest.approx(result.metrics["like/auc"])
    assert "valid/finish/logloss" in run.data.metrics
    assert any(name.startswith("test/like/auc/domain:") for name in run.data.metrics)
    assert run.data.params["model.name"] == "dcnv2"
    assert run.data.params["data.fingerprint"]
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {"plots", "plan.json", "recipe.json", "environment.json"} <= kept
    plots = {each.path for each in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"plots/loss.png", "plots/calibration.png"}
