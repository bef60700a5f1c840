"""Held-out rows with the trainer's own logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.config import Recipe
from prismrec.data.source import open_data
from prismrec.models import spec_of
from prismrec.train import held_out
from prismrec.train.evaluate import evaluation_mode, predict_batch
from prismrec.train.feed import Splits
from prismrec.train.held_out import write_held_out
from prismrec.train.process_group import Ranks, process_group
from prismrec.train.sharding import ShardedModel, shard_model
from tests.helpers.damage import damage
from tests.helpers.runs import ROWS, make_recipe, write_rows

SAMPLED = "tasks=[{name='click', label='click', negative_rate=0.25}, {name='buy', label='buy'}]"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(write_rows(tmp_path / "rows"), SAMPLED, "model.dropout=0.5")


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with process_group("cpu") as ranks:
        yield ranks


def build(recipe: Recipe, ranks: Ranks, *, is_bf16: bool) -> tuple[Splits, ShardedModel]:
    source = open_data(recipe.data.path)
    spec = spec_of(recipe, source.schema)
    sharded = shard_model(recipe, spec, ranks, is_bf16=is_bf16, total_steps=5)
    return Splits(recipe, source, ranks), sharded


def test_every_test_row_has_the_trainers_logit(
    recipe: Recipe, ranks: Ranks, tmp_path: Path
) -> None:
    splits, sharded = build(recipe, ranks, is_bf16=False)
    told: list[int] = []
    splits.on_batch = lambda: told.append(1)
    write_held_out(recipe, splits, sharded, tmp_path / "rows.parquet")
    assert len(told) == splits.held_out().num_steps, "whoever watches sees it get on"
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == ROWS["test"], "padding is left out"
    assert table.column_names[:7] == ["user", "item", "tags", "seen", "tag_weights", "x", "y"]
    expected, numbers, labels, valid = [], [], [], []
    with evaluation_mode(sharded):
        for batch in splits.batches("test"):
            real = batch.weights[:, 0] > 0
            expected.append(predict_batch(sharded, batch)[real])
            numbers.append(batch.dense[real])
            labels.append(batch.labels[real])
            valid.append(batch.valid[real])
    logits = torch.cat(expected)
    click = table.column("__logit_click").to_numpy()
    np.testing.assert_array_equal(click, (logits[:, 0] + math.log(0.25)).numpy())
    np.testing.assert_array_equal(table.column("__logit_buy").to_numpy(), logits[:, 1].numpy())
    raw = [table.column(name).fill_null(0).to_numpy() for name in ("x", "y")]
    np.testing.assert_allclose(np.stack(raw, 1), torch.cat(numbers).numpy(), rtol=1e-6)
    for t, task in enumerate(("click", "buy")):
        assert table.column(f"__label_{task}").to_pylist() == torch.cat(labels)[:, t].tolist()
        assert table.column(f"__valid_{task}").to_pylist() == torch.cat(valid)[:, t].tolist()
    assert 0 < sum(table.column("__valid_buy").to_pylist()) < 10


def test_logits_are_fp32_where_training_is_not(
    recipe: Recipe, ranks: Ranks, tmp_path: Path
) -> None:
    tables = []
    for is_bf16 in (False, True):
        splits, sharded = build(recipe, ranks, is_bf16=is_bf16)
        write_held_out(recipe, splits, sharded, tmp_path / f"{is_bf16}.parquet")
        assert sharded.leaf.is_bf16 == is_bf16
        assert sharded.dmp.training
        tables.append(pq.read_table(tmp_path / f"{is_bf16}.parquet"))
    assert tables[0].equals(tables[1])


def test_a_batch_of_rows_that_cannot_be_decoded_gives_none(
    recipe: Recipe, ranks: Ranks, tmp_path: Path
) -> None:
    """75 rows in one lane: the batches of the first row group, of 50, hold nothing."""
    damage(Path(recipe.data.path) / "2-test.parquet", 0, "user")
    one_lane = make_recipe(
        Path(recipe.data.path), SAMPLED, "data.on_bad_file='skip'", "data.lanes=1"
    )
    splits, sharded = build(one_lane, ranks, is_bf16=False)
    write_held_out(one_lane, splits, sharded, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == ROWS["test"] - 50


def test_no_more_rows_are_kept_than_are_wanted(
    recipe: Recipe, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, sharded = build(recipe, ranks, is_bf16=False)
    monkeypatch.setattr(held_out, "MAX_ROWS", 32)
    write_held_out(recipe, splits, sharded, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 32
