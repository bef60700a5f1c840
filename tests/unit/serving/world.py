"""A small recipe, its tables and an independent plain-PyTorch prediction from raw values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prismrec.config import Recipe, from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec
from prismrec.models import Inputs, needs_linear, spec_of
from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.inference import InferenceModel, build_head
from prismrec.serving.tables import TableType

RAW: dict[str, Any] = {
    "user_id": [3, 99, -7, None, 0],
    "item": [1, 2, 3, 4, 6],
    "hist": [[1, 2], [], None, [6, 6, 50], [0, None]],
    "hist_w": [[0.5, 2.0], [], None, [1.0, 1.0, 3.0], [2.0, 1.0]],
    "tags": [[0], [1, 2, 3], [], [3], [2, 2]],
    "age": [0.25, None, -1.0, 3.0, 0.5],
    "is_new": [True, False, True, None, False],
}
"""Five rows with every case: known, too large, negative and missing ids, empty and missing bags."""


TWO = [{"name": "wide", "dim": 8}, {"name": "narrow", "dim": 4}]
AME = [
    {"name": "wide", "dim": 8},
    {"name": "half", "dim": 4, "data_type": "fp16", "features": ["user_id", "hist", "tags"]},
    {"name": "means", "dim": 12, "pooling": "mean"},
    {"name": "sums", "dim": 4, "pooling": "sum", "features": ["tags", "hist"]},
    {"name": "quick", "dim": 8, "learning_rate": 0.5, "optimizer": {"name": "sgd"}},
]
"""Sets of several widths, coverages, types, poolings and optimizers.

`hist` is summed and `tags` averaged by themselves: `means` averages both, `sums` adds both up.
"""


def recipe(**overrides: Any) -> Recipe:
    """Two sets over three tables, weighted and mean bags, two tasks, one down-sampled."""
    tree: dict[str, Any] = {
        "name": "ctr",
        "data": {"path": "unused"},
        "features": {
            "sparse": [
                "user_id",
                {"name": "item", "table": "goods"},
                {"name": "hist", "table": "goods", "weights": "hist_w"},
                {"name": "tags", "pooling": "mean"},
            ],
            "dense": ["age", "is_new"],
            "group": "user_id",
        },
        "embedding": {"sets": TWO},
        "model": {"name": "deepfm", "hidden": [8, 4]},
        "tasks": [
            {"name": "click", "label": "clicked", "negative_rate": 0.1},
            {"name": "buy", "label": "bought"},
        ],
    }
    return from_dict({**tree, **overrides})


SCHEMA = DataSchema(
    name="tiny",
    columns={
        "user_id": Column(kind="id", num_ids=5),
        "item": Column(kind="id", num_ids=7),
        "hist": Column(kind="ids", num_ids=7),
        "hist_w": Column(kind="numbers"),
        "tags": Column(kind="ids", num_ids=4),
        "age": Column(kind="number"),
        "is_new": Column(kind="number"),
        "clicked": Column(kind="label"),
        "bought": Column(kind="label"),
        "note": Column(kind="other"),
    },
)


@dataclass
class World:
    """Everything an export starts from, and what it should predict."""

    recipe: Recipe
    spec: EmbeddingSpec
    tables: dict[tuple[str, str], Tensor]
    head: nn.Module

    @property
    def source(self) -> BundleSource:
        return BundleSource(
            self.recipe, SCHEMA, self.spec, lambda t, s: self.tables[t, s], self.head, {"step": 7}
        )

    def bundle(self, folder: Path, table_type: TableType = "fp32") -> Path:
        return write_bundle(folder / f"bundle-{table_type}", self.source, table_type)

    def model(self, folder: Path, table_type: TableType = "fp32") -> InferenceModel:
        return InferenceModel.load(self.bundle(folder, table_type))

    def expected_logits(self, raw: dict[str, Any]) -> Tensor:
        """One row, one feature, one id at a time."""
        rows = len(raw["user_id"])
        sets = [self._pooled(raw, each, rows) for each in self.spec.sets]
        dense = torch.tensor(
            [[0.0 if v is None else float(v) for v in raw[name]] for name in ("age", "is_new")]
        ).T
        linear = sets.pop()[:, :, :2] if needs_linear(self.recipe.model) else None
        logits, _ = self.head(Inputs(sets, linear, dense))
        rates = [math.log(task.negative_rate) for task in self.recipe.tasks]
        return (logits + torch.tensor(rates)).detach()

    def _pooled(self, raw: dict[str, Any], each_set: EmbeddingSet, rows: int) -> Tensor:
        names = self.spec.fields_of(each_set)
        covered = [each for each in self.recipe.features.sparse if each.name in names]
        pooled = torch.zeros(rows, len(names), each_set.dim)
        for field, feature in enumerate(covered):
            table = self.spec.table_of(feature.name)
            weight = self.tables[table.name, each_set.name]
            pooling = each_set.pooling or feature.pooling
            for row in range(rows):
                bag = raw[feature.source][row]
                bag = bag if isinstance(bag, list) else [] if feature.source in LISTS else [bag]
                factors = raw[feature.weights][row] if feature.weights else [1.0] * len(bag)
                for each, factor in zip(bag, factors or [], strict=True):
                    known = each is not None and 0 <= each < table.rows - 1
                    pooled[row, field] += factor * weight[each if known else table.rows - 1]
                if pooling == "mean" and bag:
                    pooled[row, field] /= len(bag)
        return pooled


LISTS = ("hist", "tags")


def make_world(scale: float = 0.5, **overrides: Any) -> World:
    """Random tables and head, the same ones each time; tables of fp16 hold numbers that fp16 has."""
    chosen = recipe(**overrides)
    spec = spec_of(chosen, SCHEMA)
    generator = torch.Generator().manual_seed(3)
    tables = {
        (table.name, each.name): torch.randn(table.rows, each.dim, generator=generator) * scale
        for table in spec.tables
        for each in spec.sets_of(table)
    }
    for table in spec.tables:
        for each in spec.sets_of(table):
            if spec.form(table, each).data_type == "fp16":
                tables[table.name, each.name] = tables[table.name, each.name].half().float()
    head = build_head(chosen, spec)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return World(chosen, spec, tables, head.eval())


def random_raw(rows: int, seed: int = 0) -> dict[str, Any]:
    """Raw columns as lists, all ids known."""
    rng = np.random.default_rng(seed)
    hist = [rng.integers(0, 7, rng.integers(0, 4)).tolist() for _ in range(rows)]
    return {
        "user_id": rng.integers(0, 5, rows).tolist(),
        "item": rng.integers(0, 7, rows).tolist(),
        "hist": hist,
        "hist_w": [rng.random(len(bag)).round(3).tolist() for bag in hist],
        "tags": [rng.integers(0, 4, rng.integers(0, 4)).tolist() for _ in range(rows)],
        "age": rng.normal(size=rows).round(3).tolist(),
        "is_new": rng.integers(0, 2, rows).astype(bool).tolist(),
    }
