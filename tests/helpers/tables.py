"""Tiny embedding specifications and a plain reference of what their tables must do."""

from __future__ import annotations

from collections.abc import Sequence

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


Bags = dict[str, list[list[int]]]
"""Row ids of every example, by feature."""

Weights = dict[str, list[list[float]]]
"""Their weights, in the same form."""

Piece = tuple[str, int, int]
"""`table/set`, first and past-the-last column: numbers of one row that lie in one shard."""


class PlainTables:
    """Independent reference: index, sum, autograd, and the optimizer's formula written out.

    Args:
        spec: the sets and tables.
        together: pieces that share a row-wise accumulator; every set has its own if not given.
    """

    def __init__(self, spec: EmbeddingSpec, together: Sequence[Sequence[Piece]] = ()) -> None:
        self.spec = spec
        self.forms = {
            f"{table.name}/{each.name}": spec.form(table, each)
            for table in spec.tables
            for each in spec.sets_of(table)
        }
        whole = whole_tables(spec)
        self.weights = {k: self._stored(k, w.double()).requires_grad_() for k, w in whole.items()}
        self.means = {key: torch.zeros_like(weight) for key, weight in self.weights.items()}
        self.steps = 0
        self.sums = {key: torch.zeros_like(weight) for key, weight in self.weights.items()}
        self._together = together or [[(k, 0, w.shape[1])] for k, w in self.weights.items()]

    def lookup(self, bags: Bags, weights: Weights | None = None) -> list[Tensor]:
        """One (B, N_m, d_m) tensor per set."""
        out = []
        for each in self.spec.sets:
            fields = [
                self._pooled(field, each, bags[field], weights[field] if weights else None)
                for field in self.spec.fields_of(each)
            ]
            out.append(torch.stack(fields, 1))
        return out

    def step(self, loss: Tensor, factor: float = 1.0) -> None:
        """Differentiate and update every table, at `factor` times its learning rate."""
        loss.backward()
        self.update(factor)

    def update(self, factor: float = 1.0) -> None:
        """Update every table by the gradients that its weights have."""
        with torch.no_grad():
            self.steps += 1
            for pieces in self._together:
                self._accumulate(pieces)
            for key, weight in self.weights.items():
                rule = self.forms[key].optimizer
                weight -= rule.learning_rate * factor * self._step_of(key, weight.grad)
                weight.copy_(self._stored(key, weight))
                weight.grad = None

    def _pooled(
        self,
        field: str,
        embedding_set: EmbeddingSet,
        bags: list[list[int]],
        weights: list[list[float]] | None,
    ) -> Tensor:
        key = f"{self.spec.table_of(field).name}/{embedding_set.name}"
        form, rows = self.forms[key], []
        for index, ids in enumerate(bags):
            factors = torch.tensor(weights[index] if weights else [1.0] * len(ids)).double()
            rows.append((self.weights[key][ids] * factors[:, None]).sum(0))
        summed = torch.stack(rows)
        clip = form.optimizer.clip
        if clip is not None and summed.requires_grad:
            summed.register_hook(lambda grad: grad.clamp(-clip, clip))
        if form.pooling == "mean":
            summed = summed / torch.tensor([[max(1, len(ids))] for ids in bags])
        return summed

    def _step_of(self, key: str, grad: Tensor) -> Tensor:
        """By how much the weights of a set move at a rate of 1."""
        rule = self.forms[key].optimizer
        if rule.name == "sgd":
            return grad
        if rule.name != "adam":
            return grad / (self.sums[key].sqrt() + rule.eps)
        steps, mean, square = torch.zeros_like(grad), self.means[key], self.sums[key]
        for row in grad.abs().sum(1).nonzero().flatten().tolist():
            mean[row] = rule.beta1 * mean[row] + (1 - rule.beta1) * grad[row]
            square[row] = rule.beta2 * square[row] + (1 - rule.beta2) * grad[row] ** 2
            unbiased = square[row] / (1 - rule.beta2**self.steps)
            steps[row] = mean[row] / (1 - rule.beta1**self.steps) / (unbiased.sqrt() + rule.eps)
        return steps

    def _accumulate(self, pieces: Sequence[Piece]) -> None:
        rule = self.forms[pieces[0][0]].optimizer.name
        if rule == "adam":
            return  # its sums decay
        squares = [self.weights[key].grad[:, low:high] ** 2 for key, low, high in pieces]
        mean = torch.cat(squares, 1).mean(1, keepdim=True)
        for (key, low, high), square in zip(pieces, squares, strict=True):
            self.sums[key][:, low:high] += mean if rule == "rowwise_adagrad" else square

    def _stored(self, key: str, weight: Tensor) -> Tensor:
        return weight.half().double() if self.forms[key].data_type == "fp16" else weight
