"""Optimizers of the tables: the fused rules FBGEMM applies in backward, and what each device has."""

from __future__ import annotations

from typing import Any

import torch
import torchrec.optim
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer, cpu_problem
from prismrec.embeddings.collection import PhysicalTable
from prismrec.embeddings.sets import EmbeddingSpec

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adam": torch.optim.Adam,
    "lamb": torchrec.optim.LAMB,
    "partial_rowwise_adam": torchrec.optim.PartialRowWiseAdam,
}
_ADAM_LIKE = ("adam", "lamb", "partial_rowwise_adam")

STATE_NAMES = {
    "adagrad": {"momentum1": "accumulator"},
    "rowwise_adagrad": {"momentum1": "accumulator"},
    "adam": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "partial_rowwise_adam": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "lamb": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "sgd": {},
}
"""FBGEMM's name of each state -> ours, by optimizer."""

PLAIN_STATE_NAMES = {"adagrad": {"sum": "accumulator"}, "sgd": {}}
"""The same for the plain optimizer that steps data_parallel tables."""


def check_optimizers(spec: EmbeddingSpec, device: str) -> None:
    """Refuse an optimizer that the device lacks for a table, or an option its kernel ignores.

    Raises:
        UserError: naming what the device has.
    """
    if device != "cpu":
        return
    for table in spec.tables:
        for each in spec.sets_of(table):
            problem = cpu_problem(spec.form(table, each).optimizer, table.name)
            if problem is not None:
                raise UserError(problem)


def moves_absent_rows(optimizer: TableOptimizer) -> bool:
    """Whether the plain form of the rule changes rows that are not in the batch.

    The fused form never does, so a data_parallel table, which is not fused, would train differently.
    """
    return optimizer.name in _ADAM_LIKE or optimizer.weight_decay > 0


def keyword_arguments(optimizer: TableOptimizer) -> dict[str, Any]:
    """Arguments of the optimizer's class."""
    arguments: dict[str, Any] = {"lr": optimizer.learning_rate}
    if optimizer.name != "sgd":
        arguments["eps"] = optimizer.eps
    if optimizer.name in _ADAM_LIKE:
        arguments["betas"] = (optimizer.beta1, optimizer.beta2)
    if optimizer.weight_decay:
        arguments["weight_decay"] = optimizer.weight_decay
    return arguments


def fuse_optimizers(tables: list[PhysicalTable], weights: dict[str, nn.Parameter]) -> None:
    """Ask for each table's optimizer to be applied in backward, before the tables are sharded.

    Args:
        tables: the tables to fuse; data_parallel ones must not be among them.
        weights: unsharded parameter of each table by physical name.
    """
    for physical in tables:
        optimizer = physical.form.optimizer
        _apply_optimizer_in_backward(
            _CLASSES[optimizer.name], [weights[physical.name]], keyword_arguments(optimizer)
        )


def plain_optimizers(
    tables: list[tuple[PhysicalTable, nn.Parameter]],
) -> list[torch.optim.Optimizer]:
    """The optimizers that step data_parallel tables by the same rules as fused ones.

    Args:
        tables: each table with its whole parameter; the planner makes no table data_parallel whose
            rule has no such form.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for physical, parameter in tables:
        optimizer = physical.form.optimizer
        group = {"params": [parameter], **keyword_arguments(optimizer)}
        groups.setdefault(optimizer.name, []).append(group)
    return [
        _CLASSES[name](each)  # type: ignore[call-arg] # subclasses need no defaults
        for name, each in groups.items()
    ]
