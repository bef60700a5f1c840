"""Losses and gradients that are no numbers: stopped at, skipped, rolled back over."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

from prismrec.checkpoint import latest
from prismrec.checkpoint.manifest import read_manifest
from prismrec.config import UserError
from prismrec.data.ledger import Ledger
from prismrec.train import loop
from prismrec.train.sharding import ShardedModel
from tests.helpers.nonfinite_model import MARK
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import (
    ROWS,
    Start,
    Trained,
    alone,
    make_recipe,
    rows_seen,
    train_each,
    write_rows,
)

STEPS = 21
_SGD = (
    "embedding.optimizer={name='sgd', learning_rate=0.05}",
    "train.optimizer={name='sgd', learning_rate=0.05}",
)
"""Without momentum a step whose gradient is 0 is one that did not happen."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which one, with key 150, is marked."""
    place = write_rows(tmp_path_factory.mktemp("nonfinite") / "rows")
    path = place / "0-train.parquet"
    table = pq.read_table(path)
    x = table.column("x").to_pylist()
    x[150] = MARK
    at = table.column_names.index("x")
    table = table.set_column(at, "x", pa.array(x, pa.float32()))
    pq.write_table(table, path, row_group_size=50)
    return place


def start(data: Path, directory: Path, kind: str, *overrides: str) -> Start:
    """A run of one epoch on the marked rows, saved every 4 steps."""
    model = f"model={{name='tests.helpers.nonfinite_model:build', options={{kind='{kind}'}}}}"
    more = (
        "train.epochs=1",
        "train.steps=50",
        "checkpoint.every_steps=4",
        "checkpoint.keep_last=9",
    )
    return Start(make_recipe(data, model, *more, *_SGD, *overrides), directory)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """The same rows with a marked step that has no gradient, that is skipped and that is rolled back."""
    place = tmp_path_factory.mktemp("runs")
    silent, back = alone(
        [
            start(data, place / "silent", "silent"),
            start(data, place / "back", "gradient", "train.on_nonfinite='rollback'"),
        ]
    )
    starts = [
        start(data, place / policy, "loss", f"train.on_nonfinite='{policy}'")
        for policy in ("skip", "rollback")
    ]
    skip, rollback = run_ranks(train_each, 2, starts, timeout_s=240)[0]
    return {"silent": silent, "back": back, "skip": skip, "rollback": rollback}


@pytest.mark.parametrize("case", ["skip", "rollback", "back"])
def test_the_step_did_not_happen(runs: dict[str, Trained], case: str) -> None:
    run, silent = runs[case], runs["silent"]
    assert run.steps == silent.steps == STEPS
    (incident,) = json.loads((run.checkpoint.parents[1] / "nonfinite.json").read_text())
    bad = incident["step"]
    assert 4 < bad < STEPS
    losses = run.log["train/loss"]
    want = {step: loss for step, loss in silent.log["train/loss"].items() if step != bad + 1}
    assert losses.pop(bad + 1) != losses.get(bad + 1), "no number stands for the step"
    assert losses == pytest.approx(want, rel=1e-5)
    assert run.metrics == pytest.approx(silent.metrics, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("case", ["skip", "rollback", "back"])
def test_the_ledger_knows_the_rows(runs: dict[str, Trained], data: Path, case: str) -> None:
    run = runs[case]
    keys = rows_seen(run.checkpoint, make_recipe(data))[0]
    assert sorted(keys) == list(range(ROWS["train"])), "every row was passed once"
    ledger = Ledger.from_json(read_manifest(run.checkpoint).extra["ledger"])
    ((bad, (epoch, lanes)),) = ledger.dropped.items()
    assert epoch == 0
    assert [stop - start for start, stop in lanes] == [4, 4, 4, 4]
    assert [start for start, _ in lanes] == [4 * bad] * 4
    assert run.log["train/dropped_steps"][STEPS] == 1


@pytest.mark.slow
def test_a_step_left_out_moves_no_moments_whatever_leaves_it_out(
    data: Path, tmp_path: Path
) -> None:
    """Skipped, rolled back over, and met again by a run that goes on under `stop`."""
    skip, back, stop = (
        start(data, tmp_path / policy, "norm", f"train.on_nonfinite='{policy}'")
        for policy in ("skip", "rollback", "stop")
    )
    skipped, rolled = alone([skip, back])
    (incident,) = json.loads((back.directory / "nonfinite.json").read_text())
    bad = incident["step"]
    saved = rolled.checkpoint.parent / f"step-{bad // 4 * 4:08d}"
    shutil.copytree(saved, stop.directory / "checkpoints" / saved.name)
    shutil.copy(back.directory / "nonfinite.json", stop.directory)
    (resumed,) = alone([stop])
    for run in (rolled, resumed):
        assert run.metrics == pytest.approx(skipped.metrics, rel=1e-6, nan_ok=True)
        assert math.isfinite(run.metrics["click/logloss"])


def test_incidents_name_what_where_and_when(runs: dict[str, Trained]) -> None:
    said = {
        case: json.loads((runs[case].checkpoint.parents[1] / "nonfinite.json").read_text())[0][
            "what"
        ]
        for case in ("skip", "rollback", "back")
    }
    assert said["skip"] == said["rollback"]
    assert said["skip"] in [f"a logit of task 'click' on rank {r} is not finite" for r in (0, 1)]
    assert said["back"] == "the gradient of 'model.layer.weight' is not finite, though the loss is"


def test_stop_ends_before_the_weights_are_touched(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"step \d+: a logit of task 'click' on rank 0 is not finite; the weights of the last "
        r"checkpoint .* set train\.on_nonfinite to 'skip' or 'rollback'",
    ):
        alone([start(data, tmp_path / "run", "loss")])
    saved = latest(tmp_path / "run" / "checkpoints")
    assert saved is not None, "what was saved before stays"
    assert not (tmp_path / "run" / "nonfinite.json").exists()


def test_a_gradient_cannot_be_skipped(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"gradient of 'model\.layer\.weight' .* only be rolled back"
    ):
        alone([start(data, tmp_path / "run", "gradient", "train.on_nonfinite='skip'")])


def test_the_model_rolled_back_is_gone_when_the_next_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []
    shard_model = loop.shard_model

    def counted(*args: Any, **options: Any) -> ShardedModel:
        alive.append(sum(each() is not None for each in made))
        sharded = shard_model(*args, **options)
        made.append(weakref.ref(sharded.leaf))
        return sharded

    monkeypatch.setattr(loop, "shard_model", counted)
    alone([start(data, tmp_path / "run", "loss", "train.on_nonfinite='rollback'")])
    assert alive == [0, 0]


def test_only_so_many(data: Path, tmp_path: Path) -> None:
    once = ("train.epochs=3", "train.nonfinite_limit=1", "train.on_nonfinite='skip'")
    with pytest.raises(UserError, match=r"after 1 steps that were not either \(train\.nonfinite_l"):
        alone([start(data, tmp_path / "run", "loss", *once)])
