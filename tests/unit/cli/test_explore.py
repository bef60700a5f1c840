"""`explore` from the command line: fitted and scored on rows that have no labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config.train import TrackingSection
from prismrec.jobs import explore
from prismrec.serving.exploration import Explorer
from prismrec.serving.inference import InferenceModel
from tests.helpers.command import run
from tests.unit.serving.world import SCHEMA, make_world, random_raw

Captured = pytest.CaptureFixture[str]
ROWS = 120


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_world(model={"name": "dcnv2", "hidden": [8]}).bundle(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows to choose from, in row groups of 70 and 50: nobody knows yet what becomes of them."""
    out = tmp_path / "data"
    out.mkdir()
    pq.write_table(pa.table(random_raw(ROWS, 2)), out / "a.parquet", row_group_size=70)
    absent = {"clicked", "bought", "note"}
    columns = {name: column for name, column in SCHEMA.columns.items() if name not in absent}
    SCHEMA.model_copy(update={"columns": columns}).write(out)
    return out


def test_fit_and_score(
    model: Path,
    data: Path,
    section: TrackingSection,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(explore, "_AT_ONCE", 16)
    explorer, out = data.parent / "explorer", data.parent / "scores"
    more = ("--data", data, "--tracking-uri", section.uri, "--json")
    fit = ("explore", "fit", model, "--split", "all", "--task", "buy", "--out", explorer, *more)
    assert run(*fit) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert (fitted["task"], fitted["rows"]) == ("buy", ROWS)
    score = ("explore", "score", model, "--explorer", explorer, "--out", out, "--seed", "3", *more)
    assert run(*score) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ROWS

    inference, raw = InferenceModel.load(model), random_raw(ROWS, 2)
    whole = Explorer.of(inference, "buy", 1.0)
    whole.update(inference, raw)
    users = np.array([-1 if user is None else user for user in raw["user_id"]])
    expected = whole.score(inference, raw, "thompson", users, (1.0, 3))
    found = pq.read_table(out)
    assert found.column("user_id").to_pylist() == raw["user_id"]
    known = np.array([user is not None for user in raw["user_id"]])
    for name in ("probability", "deviation", "score"):
        one, other = found.column(name).to_numpy(), getattr(expected, name).numpy()
        assert one[known] == pytest.approx(other[known], abs=1e-5), name

    for command in (fit, score):  # before the pass
        assert run(*command) == 2
        assert "choose another directory" in " ".join(capsys.readouterr().err.split())
    assert not list(data.parent.glob("*.tmp-*"))


def test_what_cannot_be_fitted_leaves_nothing(
    model: Path, data: Path, section: TrackingSection, capsys: Captured
) -> None:
    out = data.parent / "explorer"
    fit = ("explore", "fit", model, "--data", data, "--out", out, "--tracking-uri", section.uri)
    assert run(*fit, "--split", "valid") == 2
    assert "has no split 'valid'" in " ".join(capsys.readouterr().err.split())
    assert run(*fit, "--split", "all", "--task", "clck") == 2
    assert "no task 'clck'" in " ".join(capsys.readouterr().err.split())
    assert {each.name for each in data.parent.iterdir()} == {"bundle-fp32", "data", "track"}


@pytest.mark.slow
def test_gpytorch_is_not_loaded() -> None:
    code = "import sys, prismrec.jobs.explore; print('gpytorch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
