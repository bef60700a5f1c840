"""The inference copy against the modules that train: TorchRec's collection and the ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.data.encode.ids import NULL_ID, row_ids
from prismrec.embeddings.collection import build_collection, physical_tables
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from prismrec.train.model import Ranker
from tests.unit.serving.world import LISTS, RAW, World, make_world, random_raw

SETS = {"sets": [{"name": "wide", "dim": 8}, {"name": "narrow", "dim": 4}]}


def kjt(world: World, raw: dict[str, Any]) -> KeyedJaggedTensor:
    values, lengths, weights = [], [], []
    for feature in world.recipe.features.sparse:
        bags = [bag or [] for bag in raw[feature.source]] if feature.source in LISTS else [
            [each] for each in raw[feature.source]
        ]  # fmt: skip
        flat = [NULL_ID if each is None else each for bag in bags for each in bag]
        rows, _ = row_ids(np.array(flat, np.int64), world.spec.table_of(feature.name).rows - 1)
        values.append(torch.from_numpy(rows))
        lengths += [len(bag) for bag in bags]
        given = raw[feature.weights] if feature.weights else [[1.0] * len(bag) for bag in bags]
        weights += [each for bag in given for each in bag or []]
    return KeyedJaggedTensor(
        keys=list(world.spec.fields),
        values=torch.cat(values),
        lengths=torch.tensor(lengths),
        weights=torch.tensor(weights),
    )


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("raw", [RAW, random_raw(64)], ids=["awkward", "random"])
def test_the_copy_says_what_the_trainer_says(
    layout: str, raw: dict[str, Any], tmp_path: Path
) -> None:
    world = make_world(embedding={**SETS, "layout": layout})
    # Unfused, torch refuses weights beside a mean; the fused kernels that train take both.
    collection = FusedEmbeddingBagCollection(
        tables=build_collection(world.spec, torch.device("meta")).embedding_bag_configs(),
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": 0.1},
        is_weighted=True,
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        for physical in physical_tables(world.spec):
            weight = collection.embedding_bags[physical.name].weight
            for set_name, (start, stop) in physical.slices.items():
                weight[:, start:stop] = world.tables[physical.table.name, set_name]
    ranker = Ranker(world.spec, world.head, 2).eval()
    dense = torch.tensor(
        [[float(raw[n][i] or 0) for n in ("age", "is_new")] for i in range(len(raw["age"]))]
    )
    with torch.no_grad():
        trained, _ = ranker(collection(kjt(world, raw)), dense)
    model: InferenceModel = world.model(tmp_path)
    assert check_parity(model.predict_logits(raw), trained + model.logit_offsets) < 2e-6
