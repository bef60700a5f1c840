"""Every fused optimizer against its formula in float64: rows without gradient, weight decay, largest length.

What is held: a row that a step does not look up keeps every bit. A row that is looked up and gets a
gradient of zero keeps every bit under SGD and both Adagrads; under Adam, LAMB and partial row-wise Adam it
goes on by its old moment. Weight decay takes its share off every row that is looked up, with a gradient or
without. Bounds: 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.access import initialize, local_shards
from prismrec.embeddings.collection import build_collection
from prismrec.embeddings.plan.expand import sharding_plan
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.sharder import Sharder, shard_tables
from prismrec.train.process_group import process_group
from tests.gpu.device import DEVICE, needs_cuda
from tests.helpers.sharded import kjt, places

ROWS, WIDTH, RATE = 9, 8, 0.1
STEPS: list[tuple[list[int], list[int]]] = [
    ([0, 1, 2, 2], []),
    ([1, 2, 3], [0]),
    ([0, 1], []),
    ([1, 4], [0]),
]
"""Ids of each step's rows, and which of these rows get a gradient of zero; rows 5 to 8 are never seen."""

FREE = ("sgd", "adagrad", "rowwise_adagrad")
"""Those that leave a row without gradient alone, and that the CPU has too."""

RULES = {
    "sgd": {},
    "adagrad": {},
    "rowwise_adagrad": {},
    "rowwise_adagrad_decay": {"weight_decay": 0.2},
    "rowwise_adagrad_max_norm": {"max_norm": 0.3},
    "adam": {},
    "adam_decay": {"weight_decay": 0.2},
    "lamb": {},
    "lamb_decay": {"weight_decay": 0.2},
    "partial_rowwise_adam": {},
    "partial_rowwise_adam_decay": {"weight_decay": 0.2},
}


def rule_of(name: str) -> TableOptimizer:
    kind = name.removesuffix("_decay").removesuffix("_max_norm")
    return TableOptimizer(name=kind, learning_rate=RATE, **RULES[name])


@dataclass
class Formula:
    """One table in float64.

    Args:
        rule: optimizer and options.
        weight: (ROWS, WIDTH).
    """

    rule: TableOptimizer
    weight: Tensor
    step: int = 0
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def update(self, ids: list[int], grads: Tensor) -> None:
        """One step on the rows looked up; the gradients of a row's bags add up."""
        self.step += 1
        for row in dict.fromkeys(ids):
            grad = sum(g for i, g in zip(ids, grads, strict=True) if i == row)
            assert isinstance(grad, Tensor)
            move = getattr(self, f"_{self.rule.name}")
            self.weight[row] = move(row, self.weight[row], grad.double())

    def _sgd(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        return w - RATE * g

    def _adagrad(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        self.second[row] += g**2
        return w - RATE * g / (self.second[row].sqrt() + self.rule.eps)

    def _rowwise_adagrad(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        self.second[row] += (g**2).mean()
        w = (1 - RATE * self.rule.weight_decay) * w
        w = w - RATE * g / (self.second[row].sqrt() + self.rule.eps)
        if self.rule.max_norm is not None:
            w = w * min(1.0, self.rule.max_norm / float(w.norm()))
        return w

    def _moments(self, row: int, g: Tensor, square: Tensor) -> Tensor:
        """The direction of Adam, its moments' bias corrected by the steps of the run."""
        rule = self.rule
        self.first[row] = rule.beta1 * self.first[row] + (1 - rule.beta1) * g
        self.second[row] = rule.beta2 * self.second[row] + (1 - rule.beta2) * square
        unbiased = (self.second[row] / (1 - rule.beta2**self.step)).sqrt()
        return self.first[row] / (1 - rule.beta1**self.step) / (unbiased + rule.eps)

    def _adam(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        return w - RATE * (self._moments(row, g, g**2) + self.rule.weight_decay * w)

    def _partial_rowwise_adam(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        direction = self._moments(row, g, (g**2).mean())
        return w - RATE * (direction + self.rule.weight_decay * w)

    def _lamb(self, row: int, w: Tensor, g: Tensor) -> Tensor:
        direction = self._moments(row, g, g**2) + self.rule.weight_decay * w
        return w - RATE * math.sqrt(float((w**2).sum() / (direction**2).sum())) * direction


def steps_of(rule: TableOptimizer) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Ids, gradients, and the table before and after each step on the device."""
    spec = EmbeddingSpec(
        sets=(EmbeddingSet("only", WIDTH, 0.2),),
        tables=(TableSpec("t", ROWS, ("f",), "sum", "packed", "table_wise", rule),),
        fields=("f",),
        data_type="fp32",
        seed=3,
        allow_coupled_sets=True,
    )
    device, generator = torch.device(DEVICE), torch.Generator().manual_seed(1)
    with process_group(DEVICE):
        holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
        plan = sharding_plan(holder, places(spec, 1, 1), DEVICE, 1)
        sharded = shard_tables(holder, spec, plan, device, Sharder())
        initialize(local_shards(sharded.dmp, spec, 0, {}), spec)
        for ids, without in STEPS:
            grads = torch.randn(len(ids), WIDTH, generator=generator)
            grads[without] = 0
            (shard,) = local_shards(sharded.dmp, spec, 0, {})
            before = shard.weight.detach().cpu().clone()
            batch = kjt(spec, ({"f": [[each] for each in ids]}, None), 0, len(ids)).to(device)
            sharded.dmp.module["tables"](batch).values().backward(grads.to(device))
            (shard,) = local_shards(sharded.dmp, spec, 0, {})
            yield ids, grads, before, shard.weight.detach().cpu().clone()


def cases() -> list[object]:
    lacking = [name for name in RULES if name not in FREE]
    return [
        pytest.param(name, marks=[needs_cuda(f"kernel of {name}")] if name in lacking else [])
        for name in RULES
    ]


@pytest.mark.parametrize("name", cases())
def test_a_fused_optimizer_follows_its_formula(name: str) -> None:
    rule, formula = rule_of(name), None
    for ids, grads, before, after in steps_of(rule):
        formula = formula or Formula(rule, before.double())
        formula.update(ids, grads)
        torch.testing.assert_close(after.double(), formula.weight, atol=1e-5, rtol=1e-5)
        absent = [row for row in range(ROWS) if row not in ids]
        assert torch.equal(after[absent], before[absent]), "rows that are not looked up stay"
        for place, row in enumerate(ids):
            if (grads[place] == 0).all():
                stays = rule.name in FREE and not rule.weight_decay
                assert torch.equal(after[row], before[row]) == stays, (name, row)
