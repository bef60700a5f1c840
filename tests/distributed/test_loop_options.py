"""What each option of a recipe does to a run, one rank, mostly by hand-computed numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from prismrec.checkpoint import read_dense, read_table
from prismrec.checkpoint.manifest import read_manifest
from tests.helpers.runs import NUM_ITEMS, ROWS, Start, Trained, alone, make_recipe, write_rows

SGD = (
    "train.optimizer={name='sgd', learning_rate=0.5}",
    "embedding.optimizer={name='sgd', learning_rate=0.5}",
    "checkpoint={every_steps=1, keep_last=9}",
)
LENGTH = "train.steps={}".format
EVALUATED = ("evaluate.every_steps=2", "evaluate.metric='click/logloss'")

CASES: dict[str, tuple[str, ...]] = {
    "plain": (*SGD, LENGTH(3)),
    "clipped": (*SGD, LENGTH(1), "train.clip_norm=0.01"),
    "loosely clipped": (*SGD, LENGTH(1), "train.clip_norm=1e3"),
    "warmed up": (*SGD, LENGTH(3), "train.schedule={warmup_steps=4}"),
    "faster table": (*SGD, LENGTH(1), "embedding.tables.item={learning_rate=1.5}"),
    "faster table, warmed up": (
        *SGD,
        LENGTH(1),
        "embedding.tables.item={learning_rate=1.5}",
        "train.schedule={warmup_steps=4}",
    ),
    "averaged": (*SGD, LENGTH(3), "train.ema_decay=0.75"),
    "fp32": (LENGTH(12),),
    "fp16": (LENGTH(12), "embedding.data_type='fp16'"),
    "bf16": (LENGTH(12), "train.precision='bf16'"),
    "dropout": (LENGTH(12), "model.dropout=0.5"),
    "other seed": (LENGTH(12), "seed=6"),
    "impatient": (
        *EVALUATED,
        "evaluate.patience=2",
        "train.optimizer.learning_rate=1e-30",
        "embedding.optimizer.learning_rate=1e-30",
    ),
    "overfitted": (
        LENGTH(14),
        *EVALUATED,
        "embedding.optimizer.learning_rate=0.6",
        "checkpoint.keep_best=true",
    ),
    "overfitted, last": (
        LENGTH(14),
        *EVALUATED,
        "embedding.optimizer.learning_rate=0.6",
    ),
    "sliced": (LENGTH(2), "features.domain='tab'", "evaluate.frequency_of='item'"),
    "two epochs": (
        "train={device='cpu', precision='fp32', epochs=2}",
        "evaluate={bootstrap=0}",
    ),
    "no split": (LENGTH(2), "data.splits={train=['fold == 0']}"),
    "interval": (LENGTH(2), "evaluate.bootstrap=50"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("options") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    starts = [
        Start(make_recipe(data, *changes), data.parent / name) for name, changes in CASES.items()
    ]
    return dict(zip(CASES, alone(starts), strict=True))


def first_weights(data: Path, *changes: str) -> dict[str, Tensor]:
    """Dense weights before the first step."""
    from prismrec.data.source import open_data
    from prismrec.models import spec_of
    from prismrec.train.model import build_train_model

    recipe = make_recipe(data, *changes)
    spec = spec_of(recipe, open_data(data).schema)
    parts = build_train_model(recipe, spec, torch.device("cpu"), is_bf16=False)
    return dict(parts.leaf.ranker.state_dict())


def dense_at(run: Trained, step: int, which: str = "dense") -> dict[str, Tensor]:
    return read_dense(run.checkpoint.parent / f"step-{step:08d}", which)


def table_at(run: Trained, step: int, table: str) -> Tensor:
    return read_table(run.checkpoint.parent / f"step-{step:08d}", table, "wide")


def moved(after: dict[str, Tensor], before: dict[str, Tensor]) -> Tensor:
    """All changes as one vector."""
    return torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)])


def test_clipping_bounds_the_dense_step(data: Path, runs: dict[str, Trained]) -> None:
    start = first_weights(data)
    free = moved(dense_at(runs["plain"], 1), start)
    clipped = moved(dense_at(runs["clipped"], 1), start)
    assert free.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-4)  # rate x norm
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), atol=5e-5, rtol=0)
    loose = moved(dense_at(runs["loosely clipped"], 1), start)
    assert torch.equal(loose, free)
    assert torch.equal(table_at(runs["clipped"], 1, "user"), table_at(runs["plain"], 1, "user"))


def test_a_warm_up_scales_the_dense_steps(data: Path, runs: dict[str, Trained]) -> None:
    start = first_weights(data)
    full, warm = runs["plain"], runs["warmed up"]
    torch.testing.assert_close(
        moved(dense_at(warm, 1), start), moved(dense_at(full, 1), start) / 4, atol=1e-7, rtol=1e-4
    )


def test_a_table_may_have_a_learning_rate_of_its_own(runs: dict[str, Trained]) -> None:
    def step(name: str, table: str) -> Tensor:
        # The unknown row starts at 0: where it is now is the step it took.
        return table_at(runs[name], 1, table)[-1]

    assert step("plain", "item").norm() > 0
    torch.testing.assert_close(step("faster table", "item"), 3 * step("plain", "item"))
    torch.testing.assert_close(step("faster table", "user"), step("plain", "user"))
    torch.testing.assert_close(step("warmed up", "item"), step("plain", "item") / 4)
    torch.testing.assert_close(
        step("faster table, warmed up", "item"), 0.75 * step("plain", "item")
    )


def test_the_average_of_the_dense_weights_is_what_is_evaluated(
    data: Path, runs: dict[str, Trained]
) -> None:
    run, plain = runs["averaged"], runs["plain"]
    assert run.losses == plain.losses
    average = {
        name: w for name, w in first_weights(data).items() if name in dense_at(run, 3, "ema")
    }
    assert average
    for step in (1, 2, 3):
        weights = dense_at(run, step)
        average = {name: 0.75 * a + 0.25 * weights[name] for name, a in average.items()}
    for name, expected in dense_at(run, 3, "ema").items():
        torch.testing.assert_close(expected, average[name], msg=name)
    assert run.metrics["click/logloss"] != plain.metrics["click/logloss"]
    assert abs(run.metrics["click/logloss"] - plain.metrics["click/logloss"]) < 0.2


def test_storage_and_arithmetic_of_half_the_width_cost_little(runs: dict[str, Trained]) -> None:
    assert runs["bf16"].parameters["precision"] == "bf16"
    for name in ("fp16", "bf16"):
        assert runs[name].losses != runs["fp32"].losses
        np.testing.assert_allclose(runs[name].losses, runs["fp32"].losses, rtol=2e-2, err_msg=name)
    stored = read_manifest(runs["fp16"].checkpoint).tables["user/wide"].tensors
    assert (stored["weight"].dtype, stored["accumulator"].dtype) == ("F16", "F32")
    weight = read_table(runs["fp16"].checkpoint, "user", "wide")
    full = read_table(runs["fp32"].checkpoint, "user", "wide")
    assert (weight.float() - full).abs().mean() < 3e-3 < (full - full.mean()).abs().mean()


def test_dropout_and_seed_change_the_losses(runs: dict[str, Trained]) -> None:
    for name in ("dropout", "other seed"):
        assert runs[name].losses != runs["fp32"].losses
    assert np.abs(np.subtract(runs["dropout"].losses, runs["fp32"].losses)).max() > 0.01


def test_patience_ends_a_run(data: Path, runs: dict[str, Trained]) -> None:
    run = runs["impatient"]
    assert (run.steps, run.stopped_by) == (6, "patience")  # the best at 2, none better at 4 and 6
    recipe = make_recipe(data, *CASES["impatient"])
    (again,) = alone([Start(recipe, data.parent / "impatient", "second")])
    assert (again.steps, again.stopped_by) == (6, "patience")
    assert "train/loss" not in again.log


def test_the_best_checkpoint_is_tested_and_returned(data: Path, runs: dict[str, Trained]) -> None:
    run, last = runs["overfitted"], runs["overfitted, last"]
    by_step = run.log["valid/click/logloss"]
    best = min(by_step, key=by_step.__getitem__)
    assert best < 14, "the last one is the best: this data set proves nothing"
    assert run.checkpoint.name == f"step-{best:08d}"
    assert read_manifest(run.checkpoint).metric == -by_step[best]
    assert last.checkpoint.name == "step-00000014"
    assert last.log["valid/click/logloss"] == by_step
    changes = (*CASES["overfitted, last"], LENGTH(best))
    (stopped,) = alone([Start(make_recipe(data, *changes), data.parent / "stopped")])
    assert stopped.metrics["click/logloss"] == run.metrics["click/logloss"]
    assert last.metrics["click/logloss"] != run.metrics["click/logloss"]


def test_the_last_step_is_evaluated_whatever_the_cadence(runs: dict[str, Trained]) -> None:
    assert list(runs["plain"].log["valid/click/auc"]) == [3]
    assert list(runs["two epochs"].log["valid/click/auc"]) == [21, 42]


def test_metrics_of_slices_by_domain_and_by_frequency(data: Path, runs: dict[str, Trained]) -> None:
    metrics = runs["sliced"].metrics
    assert [metrics[f"click/rows/domain={tab}"] for tab in range(3)] == [25, 25, 25]
    tables = [pq.read_table(path, columns=["fold", "item"]) for path in data.glob("*.parquet")]
    rows = pa.concat_tables(tables).to_pylist()

    def items(fold: int) -> list[int]:
        of_fold = [row["item"] for row in rows if row["fold"] == fold]
        return [item if item is not None and 0 <= item < NUM_ITEMS else -1 for item in of_fold]

    seen = Counter(items(0))
    expected = Counter(len(str(seen[item])) if seen[item] else 0 for item in items(2))
    found = {
        int(name.rpartition("=")[2]): value
        for name, value in metrics.items()
        if name.startswith("click/rows/frequency=")
    }
    assert len(found) > 1
    assert found == expected


def test_a_run_is_as_long_as_the_recipe_says(runs: dict[str, Trained]) -> None:
    assert runs["plain"].steps == 3
    assert runs["two epochs"].steps == 2 * math.ceil(math.ceil(ROWS["train"] / 4) / 4) == 42
    assert [runs["two epochs"].log["rows_seen"][step] for step in (20, 40, 42)] == [
        320,
        ROWS["train"] + 19 * 16,
        2 * ROWS["train"],
    ]


def test_without_test_rows_there_are_no_metrics(runs: dict[str, Trained]) -> None:
    assert runs["no split"].metrics == {}
    assert not any(name.startswith("valid/") for name in runs["no split"].log)


def test_intervals_and_curves_of_the_test_rows(data: Path, runs: dict[str, Trained]) -> None:
    metrics = runs["interval"].metrics
    assert metrics["click/auc_low"] < metrics["click/auc"] < metrics["click/auc_high"]
    curves = json.loads((data.parent / "interval" / "calibration.json").read_text())
    assert sum(curves["click"]["weight"]) == pytest.approx(ROWS["test"])


def test_sampling_of_negatives_is_undone_where_it_counts(tmp_path: Path) -> None:
    """One negative in five is trained on; 4,000 test rows bound PCOC to within 8 %."""
    data = write_rows(tmp_path / "rows", {"train": 16_000, "test": 4_000})
    recipe = make_recipe(
        data,
        "data.global_batch_size=256",
        "data.splits={train=['fold == 0'], test=['fold == 2']}",
        "model={name='wide_deep', hidden=[16]}",
        "embedding.optimizer.learning_rate=0.1",
        "train.optimizer.learning_rate=0.005",
        "train.steps=63",
        "tasks=[{name='click', label='click', negative_rate=0.2}, {name='buy', label='buy'}]",
    )
    (run,) = alone([Start(recipe, tmp_path / "run")])
    metrics = run.metrics
    assert metrics["click/rows"] == 4000, "no row is left out of an evaluation"
    assert metrics["click/auc"] > 0.75
    assert metrics["click/pcoc"] == pytest.approx(1, abs=0.08)
    held_out = pq.read_table(tmp_path / "run" / "held_out.parquet")
    logits = held_out.column("__logit_click").to_numpy().astype(float)
    rate = held_out.column("__label_click").to_numpy().mean()
    left_alone = 1 / (1 + np.exp(-(logits - math.log(0.2))))
    assert left_alone.mean() / rate > 1.3, "what the model says of the rows it was trained on"
