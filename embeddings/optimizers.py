"""Optimizers of the tables: the fused rules FBGEMM applies in backward, and what each device has."""

from __future__ import annotations

from typing import Any

import torch
import torchrec.optim
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

from prismrec.config import UserError
from prismrec.config.embedding import KERNEL_OPTIONS, TableOptimizer, cpu_problem
from prismrec.embeddings.collection import PhysicalTable
from prismrec.embeddings.row_adam import RowAdam
from prismrec.embeddings.sets import EmbeddingSpec

_FUSED: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torchrec.optim.SGD,
    "adagrad": torchrec.optim.Adagrad,
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adam": torchrec.optim.Adam,
    "lamb": torchrec.optim.LAMB,
    "partial_rowwise_adam": torchrec.optim.PartialRowWiseAdam,
}
"""Classes that only name a rule of FBGEMM's; they take its kernel's arguments and never run."""

_PLAIN: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": RowAdam,
}
STATE_NAMES = {
    "adagrad": {"momentum1": "accumulator"},
    "rowwise_adagrad": {"momentum1": "accumulator"},
    "adam": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "partial_rowwise_adam": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "lamb": {"momentum1": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "sgd": {},
}
"""FBGEMM's name of each state -> ours, by optimizer."""

ROW_WISE_STATES = {"rowwise_adagrad": ("accumulator",), "partial_rowwise_adam": ("exp_avg_sq",)}
"""Our names of the states that have one number for a row of a shard, by optimizer."""

PLAIN_STATE_NAMES = {
    "adagrad": {"sum": "accumulator"},
    "adam": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "sgd": {},
}
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
            where = f"table '{table.name}', set '{each.name}': embedding.optimizer"
            problem = cpu_problem(spec.form(table, each).optimizer, table.sharding, where)
            if problem is not None:
                raise UserError(problem)


def fused_arguments(optimizer: TableOptimizer) -> dict[str, Any]:
    """Arguments of FBGEMM's kernel.

    >>> fused_arguments(TableOptimizer(name="sgd", clip=0.5))
    {'lr': 0.05, 'gradient_clipping': True, 'max_gradient': 0.5}
    """
    arguments: dict[str, Any] = {"lr": optimizer.learning_rate}
    for option in KERNEL_OPTIONS[optimizer.name]:
        value = getattr(optimizer, option)
        if value:
            arguments[option] = value
    if optimizer.name == "rowwise_adagrad" and optimizer.weight_decay:
        # Left to itself, this kernel takes a weight decay and applies none.
        arguments["weight_decay_mode"] = WeightDecayMode.DECOUPLE
    if optimizer.clip is not None:
        arguments |= {"gradient_clipping": True, "max_gradient": optimizer.clip}
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
            _FUSED[optimizer.name], [weights[physical.name]], fused_arguments(optimizer)
        )


def plain_optimizers(
    tables: list[tuple[PhysicalTable, nn.Parameter]],
) -> list[torch.optim.Optimizer]:
    """The optimizers that step data_parallel tables by the same rules as fused ones.

    Args:
        tables: each table with its whole parameter; none has a `plain_problem`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for physical, parameter in tables:
        optimizer = physical.form.optimizer
        options = {name: getattr(optimizer, name) for name in KERNEL_OPTIONS[optimizer.name]}
        group = {"params": [parameter], "lr": optimizer.learning_rate, **options}
        groups.setdefault(optimizer.name, []).append(group)
    return [
        _PLAIN[name](each)  # type: ignore[call-arg] # subclasses need no defaults
        for name, each in groups.items()
    ]
