"""Adam that leaves alone the rows a step does not look up, as FBGEMM's fused kernel does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class RowAdam(torch.optim.Optimizer):
    """Steps tables that are not fused, by their dense gradients, on any device and without a sync.

    A row whose gradient is zero keeps its weights and its moments. `torch.optim.Adam` would go on moving
    it by its old moment, so that a table would train otherwise when it is placed otherwise. Both
    corrections of the bias count the steps of the run, not those of the row. One thing differs from the
    fused kernel: there, a row that is looked up but gets a gradient of exactly zero does decay.

    Args:
        groups: `params`, `lr`, and as options `beta1`, `beta2`, `eps` and `weight_decay`, the share of a
            row, times `lr`, that each of its steps takes off.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        usual = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
        super().__init__(list(groups), usual)
        self.steps_done = 0
        """Steps behind the moments, set anew when these are loaded."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every row that has a gradient."""
        assert closure is None
        self.steps_done += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: nn.Parameter, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        has_moved = (grad != 0).any(-1, keepdim=True).to(grad.dtype)
        mean = state["exp_avg"].lerp_(grad, has_moved * (1 - group["beta1"]))
        square = state["exp_avg_sq"].lerp_(grad * grad, has_moved * (1 - group["beta2"]))
        correction = math.sqrt(1 - group["beta2"] ** self.steps_done)
        divisor = (square.sqrt() / correction).add_(group["eps"])
        move = (mean / divisor).div_(1 - group["beta1"] ** self.steps_done)
        if group["weight_decay"]:
            move.add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(move.mul_(has_moved), alpha=group["lr"])
