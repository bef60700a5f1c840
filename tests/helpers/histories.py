"""A small data set with histories, and recipes over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe, from_dict
from prismrec.data.schema import Column, DataSchema

NUM_ITEMS, NUM_CATEGORIES, MOST = 23, 7, 6
ROWS = {"train": 128, "valid": 32, "test": 32}
BATCH, LANES = 16, 4

_COLUMNS = {
    "fold": Column(kind="other"),
    "user": Column(kind="id", num_ids=19),
    "item": Column(kind="id", num_ids=NUM_ITEMS),
    "category": Column(kind="id", num_ids=NUM_CATEGORIES),
    "items": Column(kind="ids", num_ids=NUM_ITEMS),
    "categories": Column(kind="ids", num_ids=NUM_CATEGORIES),
    "ago": Column(kind="numbers"),
    "x": Column(kind="number"),
    "click": Column(kind="label"),
    "buy": Column(kind="label"),
}

RECIPE: dict[str, Any] = {
    "name": "histories",
    "seed": 3,
    "data": {
        "global_batch_size": BATCH,
        "lanes": LANES,
        "order": "file",
        "splits": {"train": ["fold == 0"], "valid": ["fold == 1"], "test": ["fold == 2"]},
    },
    "features": {
        "sparse": ["user", "item", "category"],
        "dense": ["x"],
        "sequences": [
            {
                "name": "history",
                "behaviours": [
                    {"column": "items", "target": "item"},
                    {"column": "categories", "target": "category"},
                ],
                "gaps": "ago",
                "max_length": 4,
                "num_buckets": 12,
            }
        ],
    },
    "embedding": {
        "sets": [
            {"name": "wide", "dim": 8, "init_std": 0.1},
            {"name": "narrow", "dim": 4, "init_std": 0.1},
        ],
        "optimizer": {"learning_rate": 0.05},
    },
    "model": {
        "name": "deepfm",
        "hidden": [16, 8],
        "sequence": {"kind": "tim", "encoding": "both"},
    },
    "tasks": [{"name": "click", "label": "click"}, {"name": "buy", "label": "buy"}],
    "train": {"device": "cpu", "precision": "fp32", "log_every": 1, "steps": 8},
    "evaluate": {"bootstrap": 0, "every_steps": 1000},
    "checkpoint": {"keep_best": False},
}
"""The recipe of these tests; each says what it changes as `section.key=value`."""


def write_histories(directory: Path, *, is_half_empty: bool = False) -> Path:
    """Write the data set: missing ids and lists, empty histories, behaviours later than their rows.

    Args:
        directory: to make.
        is_half_empty: rows in the first half of each split have no behaviour, and so no row of the first of
            two ranks has.
    """
    directory.mkdir(parents=True)
    for fold, (split, count) in enumerate(ROWS.items()):
        rows = _table(count, fold, np.random.default_rng(fold), is_half_empty)
        pq.write_table(rows, directory / f"{fold}-{split}.parquet", row_group_size=24)
    DataSchema(name="histories", columns=_COLUMNS).write(directory)
    return directory


def make_recipe(data: Path, *overrides: str) -> Recipe:
    """The recipe over a data set, with `section.key=value` changes."""
    return from_dict(RECIPE, [f"data.path='{data}'", *overrides])


def _table(count: int, fold: int, random: np.random.Generator, is_half_empty: bool) -> pa.Table:
    item, category = random.integers(0, NUM_ITEMS, count), random.integers(0, NUM_CATEGORIES, count)
    lengths = random.integers(0, MOST + 1, count) * (random.random(count) < 0.8)
    if is_half_empty:
        lengths[: count // 2] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    gaps = np.sort(random.exponential(5e4, (count, MOST)), axis=1)[:, ::-1] - 200.0
    exists = np.arange(MOST)[::-1] < lengths[:, None]
    items, categories = (
        random.integers(0, limit, total) for limit in (NUM_ITEMS + 1, NUM_CATEGORIES)
    )
    same = np.add.reduceat(
        np.append((categories == np.repeat(category, lengths)).astype(float), 0), offsets[:-1]
    ) * (lengths > 0)
    click = random.random(count) < 1 / (1 + np.exp(1 - same))
    return pa.table(
        {
            "fold": pa.array(np.full(count, fold)),
            "user": pa.array(random.integers(0, 19, count)),
            "item": pa.array(item, mask=random.random(count) < 0.05),
            "category": pa.array(category),
            "items": pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(items)),
            "categories": pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(categories)),
            "ago": pa.ListArray.from_arrays(
                offsets.astype(np.int32), pa.array(gaps[exists].astype(np.float32))
            ),
            "x": pa.array(random.normal(size=count).astype(np.float32)),
            "click": pa.array(click.astype(np.int8)),
            "buy": pa.array((random.random(count) < 0.4).astype(np.int8)),
        }
    )
