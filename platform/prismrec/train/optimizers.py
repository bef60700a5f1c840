"""One optimizer over everything that trains: fused tables, plain tables, dense weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from prismrec.config import UserError
from prismrec.config.train import DenseOptimizer, Schedule
from prismrec.embeddings.access import table_name
from prismrec.embeddings.copies import TableCopies
from prismrec.models.batch_norm import BatchNorm
from prismrec.models.domains import DomainScale
from prismrec.models.heads.star import DomainFactor
from prismrec.models.layers import LayerNorm

_SPARED = (
    nn.LayerNorm,
    nn.modules.batchnorm._BatchNorm,
    BatchNorm,
    LayerNorm,
    DomainScale,
    DomainFactor,
)
"""Modules of scales and factors around 1, which no decay may pull to 0."""
_DENSE: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def schedule_factor(schedule: Schedule, step: int, total_steps: int, worse: int = 0) -> float:
    """The factor on every learning rate at a step, after so many evaluations that were not the best.

    >>> s = Schedule(warmup_steps=4, decay="linear", decay_steps=10, min_factor=0.5)
    >>> [schedule_factor(s, step, 100) for step in (0, 3, 4, 9, 14, 50)]
    [0.25, 1.0, 1.0, 0.75, 0.5, 0.5]
    >>> s = Schedule(decay="plateau", plateau_factor=0.5, min_factor=0.2)
    >>> [schedule_factor(s, 7, 100, worse) for worse in (0, 1, 2, 3)]
    [1.0, 0.5, 0.25, 0.2]
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "none":
        return 1.0
    if schedule.decay == "plateau":
        return max(schedule.min_factor, schedule.plateau_factor**worse)
    span = schedule.decay_steps or max(1, total_steps - schedule.warmup_steps)
    done = min(1.0, (step - schedule.warmup_steps) / span)
    left = 1 - done if schedule.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.min_factor + (1 - schedule.min_factor) * left


def dense_optimizer(model: nn.Module, section: DenseOptimizer) -> torch.optim.Optimizer:
    """The optimizer of the dense weights; weight decay spares biases, normalisation and factors."""
    spared: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_spared = name == "bias" or isinstance(module, _SPARED) or parameter.dim() <= 1
            if parameter.requires_grad:
                (spared if is_spared else decayed).append(parameter)
    arguments: dict[str, Any] = {"lr": section.learning_rate}
    if section.name in ("adam", "adamw"):
        arguments |= {"betas": (section.beta1, section.beta2), "eps": section.eps, "fused": True}
    if section.name == "adagrad":
        arguments["eps"] = section.eps
    groups = [
        {"params": decayed, "weight_decay": section.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return _DENSE[section.name]([g for g in groups if g["params"]], **arguments)


class Ema:
    """Exponential moving average of the dense weights.

    Args:
        parameters: the weights by name; their average starts at their present values.
        decay: share of the old average kept at each step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._decay = decay
        self._parameters = dict(parameters)
        self.averages = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average."""
        torch._foreach_lerp_(  # type: ignore[no-untyped-call]
            list(self.averages.values()),
            [parameter.detach() for parameter in self._parameters.values()],
            1 - self._decay,
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; a second call undoes the first."""
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(held)


class Optimizers:
    """What the train pipeline calls: clears gradients, steps everything, moves the learning rates.

    The fused tables are updated inside backward; here they only take their learning rate.

    Args:
        model: the sharded model, for its fused optimizer.
        dense: dense weights by name.
        optimizers: the plain optimizers (dense weights, data_parallel tables).
        schedule: factor on every learning rate.
        total_steps: length of the run, for decays without a length of their own.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        dense: Mapping[str, nn.Parameter],
        optimizers: list[torch.optim.Optimizer],
        schedule: Schedule,
        total_steps: int,
    ) -> None:
        self._fused = model.fused_optimizer
        self._dense = list(dense.values())
        self._optimizers = optimizers
        self._schedule = schedule
        self._total_steps = total_steps
        groups = [group for each in [self._fused, *optimizers] for group in each.param_groups]
        self._base = [(group, float(group["lr"])) for group in groups]
        self.clip_norm: float | None = None
        self.ema: Ema | None = None
        self.copies: TableCopies | None = None
        self.frozen: list[nn.Parameter] = []
        self._worse = 0
        self.start_at(0)

    @property
    def steps_done(self) -> int:
        """Steps whose updates are in the weights."""
        return self._step

    def start_at(self, step: int, worse: int | None = None) -> None:
        """Set the learning rates for a step that is about to run.

        Args:
            step: steps done before it.
            worse: evaluations so far that were not the best; as at the last call if not given.
        """
        self._step = step
        self._worse = self._worse if worse is None else worse
        factor = schedule_factor(self._schedule, step, self._total_steps, self._worse)
        for group, base in self._base:
            group["lr"] = base * factor
        self._fused.step()  # hands the rate to the kernels; the tables' update is in backward

    def pass_over(self) -> None:
        """Count a step that changes nothing, and set the next one's learning rates."""
        self.start_at(self._step + 1)

    def zero_grad(self) -> None:
        """Drop the gradients of the plain parameters."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update what backward did not, then prepare the next step's learning rates.

        Collective: every rank calls it.
        """
        for parameter in self.frozen:
            parameter.grad = None  # an optimizer passes over those without, momentum and all
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._dense, self.clip_norm, foreach=True)
        for optimizer in self._optimizers:
            optimizer.step()
        if self.ema is not None:
            self.ema.update()
        if self.copies is not None:
            self.copies.after_step(self._step + 1)
        self.start_at(self._step + 1)


def check_coverage(
    model: DistributedModelParallel, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Every parameter that trains has exactly one optimizer.

    Raises:
        UserError: naming the parameters that would never move, or move twice.
    """
    held = Counter(
        id(p) for each in optimizers for group in each.param_groups for p in group["params"]
    )
    fused = {table_name(key) for key in model.fused_optimizer.params}
    wrong = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.numel():
            continue
        is_fused = table_name(name) in fused
        count = held[id(parameter)] + is_fused
        if count != 1:
            wrong.append(f"{name} ({'two optimizers' if count else 'no optimizer'})")
    if wrong:
        raise UserError("these parameters would not train as asked: " + ", ".join(wrong))


def flat_state(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """State tensors by `parameter/state`, made where the optimizer has not made them yet.

    The tensors are the optimizer's own: filling them restores it.
    """
    flat = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state and isinstance(optimizer, torch.optim.Adam):  # AdamW is an Adam
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    flat[f"{names[parameter]}/{key}"] = value
    return flat
