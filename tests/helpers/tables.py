"""Tiny embedding specifications and a plain reference of what their tables must do."""

from __future__ import annotations

import torch
from torch import Tensor

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.access import initialize
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.shards import LocalShard

ROWS = {"user": 11, "item": 7, "tag": 5}
MIXED = ("adagrad", "sgd", "rowwise_adagrad")
"""One optimizer for each table."""
SETS = (EmbeddingSet("wide", 8, 0.1), EmbeddingSet("narrow", 4, 0.2))


def make_spec(
    layout: str = "packed", sharding: str = "auto", optimizer: str = "adagrad", rate: float = 0.1
) -> EmbeddingSpec:
    """Three tables, four fields (`item` and `history` share one), two sets of unequal width."""
    features = {"user": ("user",), "item": ("item", "history"), "tag": ("tag",)}
    names = MIXED if optimizer == "mixed" else (optimizer,) * len(ROWS)
    tables = tuple(
        TableSpec(
            name,
            rows,
            features[name],
            "sum",
            layout,
            sharding,
            TableOptimizer(name=names[index], learning_rate=rate * (1 + index), eps=1e-8),
        )
        for index, (name, rows) in enumerate(ROWS.items())
    )
    return EmbeddingSpec(
        sets=SETS,
        tables=tables,
        fields=("user", "item", "history", "tag"),
        data_type="fp32",
        seed=3,
    )


def whole_tables(spec: EmbeddingSpec) -> dict[str, Tensor]:
    """Every `table/set` as one plain initialised tensor."""
    shards = [
        LocalShard(
            table.name, each.name, table.rows, each.dim, 0, 0, torch.empty(table.rows, each.dim)
        )
        for table in spec.tables
        for each in spec.sets_of(table)
    ]
    initialize(shards, spec)
    return {shard.key: shard.weight for shard in shards}


class PlainTables:
    """Independent reference: index, sum, autograd, and the optimizer's formula written out."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = spec
        self.weights = {k: w.double().requires_grad_() for k, w in whole_tables(spec).items()}
        self.sums = {
            k: torch.zeros(w.shape[0])
            if "rowwise" in self._optimizer(k).name
            else torch.zeros_like(w)
            for k, w in self.weights.items()
        }

    def lookup(self, bags: dict[str, list[list[int]]]) -> list[Tensor]:
        """One (B, N, d_m) tensor per set."""
        out = []
        for each in self.spec.sets:
            fields = []
            for name in self.spec.fields:
                weight = self.weights[f"{self.spec.table_of(name).name}/{each.name}"]
                rows = [
                    weight[ids].sum(0) if ids else torch.zeros(each.dim, dtype=torch.double)
                    for ids in bags[name]
                ]
                fields.append(torch.stack(rows))
            out.append(torch.stack(fields, 1))
        return out

    def step(self, loss: Tensor) -> None:
        """Differentiate and update every table."""
        loss.backward()
        with torch.no_grad():
            for key, weight in self.weights.items():
                rule = self._optimizer(key)
                rate, eps = rule.learning_rate, rule.eps
                grad = weight.grad
                if rule.name == "sgd":
                    weight -= rate * grad
                elif rule.name == "adagrad":
                    self.sums[key] += grad**2
                    weight -= rate * grad / (self.sums[key].sqrt() + eps)
                else:
                    self.sums[key] += (grad**2).mean(1)
                    weight -= rate * grad / (self.sums[key].sqrt()[:, None] + eps)
                weight.grad = None

    def _optimizer(self, key: str) -> TableOptimizer:
        return next(t.optimizer for t in self.spec.tables if t.name == key.split("/")[0])
