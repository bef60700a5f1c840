"""The inference copy against the modules that train: the sharded tables and the ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.data.batch import Batch
from prismrec.serving.export import HeldOut, export_model
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from prismrec.train.evaluate import evaluation_mode, predict_batch
from prismrec.train.process_group import process_group
from prismrec.train.sharding import shard_model
from tests.unit.serving.world import AME, LISTS, RAW, TWO, World, make_world, random_raw

EXPORT = {"max_auc_change": 1.0, "max_logloss_change": 1.0}
DIFFERENCE = {"fp32": 2e-6, "fp16": 5e-3, "int8": 5e-2}
"""Largest difference of a logit by stored type; the logits are of the order of 1."""


def kjt(world: World, raw: dict[str, Any]) -> KeyedJaggedTensor:
    values, lengths, weights = [], [], []
    for feature in world.recipe.features.sparse:
        num_known = world.spec.table_of(feature.name).rows - 1
        bags = [bag or [] for bag in raw[feature.source]] if feature.source in LISTS else [
            [each] for each in raw[feature.source]
        ]  # fmt: skip
        flat = [each for bag in bags for each in bag]
        values += [i if i is not None and 0 <= i < num_known else num_known for i in flat]
        lengths += [len(bag) for bag in bags]
        given = raw[feature.weights] if feature.weights else [[1.0] * len(bag) for bag in bags]
        weights += [each for bag in given for each in bag or []]
    return KeyedJaggedTensor(
        keys=list(world.spec.fields),
        values=torch.tensor(values),
        lengths=torch.tensor(lengths),
        weights=torch.tensor(weights),
    )


def batch_of(world: World, raw: dict[str, Any]) -> Batch:
    rows, tasks = len(raw["age"]), len(world.recipe.tasks)
    numbers = [[float(raw[name][i] or 0) for name in ("age", "is_new")] for i in range(rows)]
    none = torch.zeros(rows, tasks)
    index = torch.arange(rows)
    return Batch(
        sparse=kjt(world, raw),
        dense=torch.tensor(numbers),
        labels=none,
        valid=none + 1,
        weights=none + 1,
        domain=index,
        group=index,
        time=index,
    )


def trained_logits(world: World, raws: list[dict[str, Any]]) -> list[Tensor]:
    """What the trainer's evaluation says, its sharded tables and its ranker filled with the world's."""
    with process_group("cpu") as ranks:
        sharded = shard_model(world.recipe, world.spec, ranks, is_bf16=False, total_steps=1)
        with torch.no_grad():
            for shard in sharded.shards():
                shard.weight.copy_(world.tables[shard.table, shard.set_name])
        sharded.leaf.ranker.model.load_state_dict(world.head.state_dict())
        with evaluation_mode(sharded):
            return [predict_batch(sharded, batch_of(world, raw)) for raw in raws]


@pytest.mark.parametrize("sets", [TWO, AME], ids=["two", "ame"])
@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_the_copy_says_what_the_trainer_says(sets: Any, layout: str, tmp_path: Path) -> None:
    world = make_world(embedding={"sets": sets, "layout": layout}, train={"device": "cpu"})
    raws = [RAW, random_raw(64)]
    model: InferenceModel = world.model(tmp_path)
    for raw, trained in zip(raws, trained_logits(world, raws), strict=True):
        assert trained.std() > 0.5
        assert check_parity(model.predict_logits(raw), trained + model.logit_offsets) < 2e-6


@pytest.mark.parametrize("table_type", list(DIFFERENCE))
def test_an_export_of_mixed_sets_stays_near_the_trainer(table_type: str, tmp_path: Path) -> None:
    world = make_world(
        embedding={"sets": AME},
        train={"device": "cpu"},
        model={"name": "dcnv2", "hidden": [8, 4], "merge": "gate"},
        export={"table_type": table_type, **EXPORT},
    )
    raw = random_raw(300)
    (trained,) = trained_logits(world, [raw])
    trained += torch.tensor([task.logit_offset for task in world.recipe.tasks])
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(300, 2, generator=generator) < torch.sigmoid(trained)).float()
    held_out = HeldOut(raw, trained, labels, torch.ones(300, 2))
    report = export_model(tmp_path / "copy", world.source, held_out)
    assert report["max_difference_to_trainer"] < 2e-6
    logits = InferenceModel.load(tmp_path / "copy").predict_logits(raw)
    assert (logits - trained).abs().max() < DIFFERENCE[table_type]
