"""The train pipeline: refused where it would not overlap, and left and taken up again in mid-run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from prismrec.config import UserError
from prismrec.data.batch import Batch
from prismrec.data.source import open_data
from prismrec.embeddings.access import lookups, set_steps_done
from prismrec.models import spec_of
from prismrec.train import sharding
from prismrec.train.evaluate import evaluation_mode, predict_batch
from prismrec.train.feed import Splits
from prismrec.train.model import ModelParts, Output, TrainModel, build_train_model
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import process_group
from prismrec.train.sharding import ShardedModel
from tests.helpers.runs import make_recipe, write_rows

UNWEIGHTED = "features={sparse=['user', 'item'], dense=['x']}"


class Detour(nn.Module):
    """Gives the ids back as they came: harmless, but between the batch and the lookup."""

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(sparse.keys(), sparse.values() + 0, lengths=sparse.lengths())


class WorksOnIds(TrainModel):
    """A model that does something before it looks up."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__(parts.model.tables, None, parts.leaf)
        self.detour = Detour()

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        pooled = self.tables(self.detour(batch.sparse))
        return self.leaf((pooled,), batch)


class Between(nn.Module):
    """Gives the vectors back as they came."""

    def forward(self, pooled: KeyedTensor) -> KeyedTensor:
        return KeyedTensor(pooled.keys(), pooled.length_per_key(), pooled.values() * 2 / 2)


class Wrapped(TrainModel):
    """A model with a module between the lookup and the leaf: it still is pipelined."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__(parts.model.tables, None, parts.leaf)
        self.between = Between()

    def forward(self, batch: Batch) -> tuple[Tensor, Output]:
        pooled = self.tables(batch.sparse)
        return self.leaf((self.between(pooled),), batch)


@contextmanager
def built(place: Path, *overrides: str) -> Iterator[tuple[Splits, ShardedModel]]:
    """Rows and a freshly initialised model on one rank."""
    data = place / "rows"
    recipe = make_recipe(data if data.exists() else write_rows(data), UNWEIGHTED, *overrides)
    source = open_data(data)
    spec = spec_of(recipe, source.schema)
    with process_group("cpu") as ranks:
        model = sharding.shard_model(recipe, spec, ranks, is_bf16=False, total_steps=9)
        yield Splits(recipe, source, ranks), model


def use(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[ModelParts], TrainModel]) -> None:
    def build(*args: object, is_bf16: bool) -> ModelParts:
        parts = build_train_model(*args, is_bf16=is_bf16)
        return ModelParts(wrap(parts), parts.leaf)

    monkeypatch.setattr(sharding, "build_train_model", build)


def test_a_model_that_works_on_ids_before_the_lookup_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, WorksOnIds)
    with (
        built(tmp_path) as (splits, sharded),
        pytest.raises(UserError, match="0 of 1 sharded modules pipelined: a model's forward must"),
    ):
        Pipeline(sharded).step(batch for batch, _ in splits.train.epoch())


def test_work_behind_the_lookup_costs_no_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Wrapped)
    with built(tmp_path) as (splits, sharded):
        loss, _, _ = Pipeline(sharded).step(batch for batch, _ in splits.train.epoch())
        assert 0.3 < loss < 2


def test_the_model_can_be_called_in_mid_run_and_no_batch_is_lost(tmp_path: Path) -> None:
    def losses(*, called_after: tuple[int, ...]) -> tuple[list[float], list[Tensor]]:
        with built(tmp_path) as (splits, sharded):
            pipeline, found, logits = Pipeline(sharded), [], []
            train = (batch for batch, _ in splits.train.epoch())
            for step in range(1, 7):
                found.append(float(pipeline.step(train)[0]))
                if step in called_after:
                    with pipeline.detached(), evaluation_mode(sharded):
                        logits.append(predict_batch(sharded, next(splits.batches("valid"))))
            pipeline.close()
            with evaluation_mode(sharded):
                logits.append(predict_batch(sharded, next(splits.batches("valid"))))
            return found, logits

    plain, (last,) = losses(called_after=())
    called, logits = losses(called_after=(1, 4, 6))
    assert called == plain
    assert torch.equal(logits[3], last)
    assert torch.equal(logits[2], last)
    assert not torch.equal(logits[0], logits[1])


def test_the_kernels_count_training_steps_and_no_lookups_of_evaluations(tmp_path: Path) -> None:
    own = ("embedding.layout=separate", "embedding.optimizer.name=rowwise_adagrad")
    with built(tmp_path, *own) as (splits, sharded):
        kernels = [
            kernel
            for lookup in lookups(sharded.dmp)
            for kernel in lookup.modules()
            if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)
        ]
        sharded.steps_before = 10  # of the run that these states come from
        set_steps_done(sharded.dmp, 10)
        pipeline, counted = Pipeline(sharded), []
        train = (batch for batch, _ in splits.train.epoch())
        for _ in range(3):
            pipeline.step(train)
            with pipeline.detached(), evaluation_mode(sharded):
                predict_batch(sharded, next(splits.batches("valid")))
            counted += [(int(kernel.iter), int(kernel.iter_cpu)) for kernel in kernels]
    assert counted == [(steps, steps) for steps in (11, 12, 13) for _ in kernels]
