"""A run on the synthetic world learns what its histories do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config import Recipe, from_dict
from prismrec.data.world import write_world
from tests.helpers.runs import Start, alone

HISTORY = {
    "name": "history",
    "behaviours": [{"column": "history_categories", "target": "category"}],
    "gaps": "history_times",
    "max_length": 30,
}
TIM = {"kind": "tim", "encoding": "both"}


def recipe(world: Path, module: dict[str, Any] | None) -> Recipe:
    features: dict[str, Any] = {"sparse": ["user_id", "category"], "time": "time"}
    model: dict[str, Any] = {"name": "dnn", "hidden": [64]}
    if module is not None:
        features["sequences"] = [HISTORY]
        model["sequence"] = module
    return from_dict(
        {
            "name": "learns",
            "data": {
                "path": str(world),
                "global_batch_size": 256,
                "splits": {"train": ["day <= 4"], "valid": ["day == 5"], "test": ["day >= 5"]},
            },
            "features": features,
            "embedding": {"dim": 16, "init_std": 0.1, "optimizer": {"learning_rate": 0.05}},
            "model": model,
            "tasks": [{"name": "like", "label": "like"}],
            "train": {"device": "cpu", "epochs": 3, "optimizer": {"learning_rate": 3e-3}},
            "evaluate": {"bootstrap": 0, "every_steps": 10_000},
            "checkpoint": {"keep_best": False},
        }
    )


@pytest.mark.slow
def test_tim_finds_that_behaviours_of_the_targets_category_count(tmp_path: Path) -> None:
    write_world(tmp_path / "world", rows=50_000, days=7, seed=1)
    modules = {"none": None, "tim": TIM}
    starts = [
        Start(recipe(tmp_path / "world", module), tmp_path / name)
        for name, module in modules.items()
    ]
    none, tim = alone(starts)
    assert tim.metrics["like/auc"] > none.metrics["like/auc"] + 0.02
    with CheckpointReader(tim.checkpoint) as reader:
        dense = reader.dense()
        (key,) = (each for each in reader.manifest.tables if each.startswith("category/"))
        vectors = reader.table(*key.split("/"))[:-1]  # without the unknown row
    positions, intervals = (
        next(each for name, each in dense.items() if name.endswith(f"temporal.{which}"))
        for which in ("positions", "intervals")
    )
    target = vectors + positions[0] + intervals[0]
    same, other = [], []
    for position, interval in ((1, 8), (6, 10), (20, 12)):
        logits = (vectors + positions[position] + intervals[interval]) @ target.T / 4
        count, own = len(logits), logits.diagonal().sum()
        same.append(float(own / count))
        other.append(float((logits.sum() - own) / (count * count - count)))
    assert min(same) > max(other) + 0.05
    assert same[0] > same[1] > same[2]
    assert other[0] > other[2]
