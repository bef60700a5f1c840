"""The loss of all tasks: rows weighted, averaged over the global batch, batch losses added.

Notation: B rows of this rank, T tasks, J of them with a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from prismrec.models.objectives.delayed import importance
from prismrec.models.objectives.losses import TaskLoss
from prismrec.models.objectives.ranking import Rows, gathered
from prismrec.models.objectives.reduction import DomainMeans, global_mean


@dataclass(frozen=True, slots=True)
class Targets:
    """What the rows of a batch are held against.

    Args:
        labels: y (B, T) in [0, 1]; whatever stands where `valid` is 0 is ignored.
        valid: v (B, T) in {0, 1}.
        weights: w (B, T), at least 0.
        propensity: (B, T) in (0, 1], weights against repeated exposure; needed where a task uses
            them.
        group: (B,) int64; needed where a loss compares rows of a group.
        domain: (B,) int64, or None.
    """

    labels: Tensor
    valid: Tensor
    weights: Tensor
    propensity: Tensor | None = None
    group: Tensor | None = None
    domain: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """What an objective came to, without a gradient; the mean over the ranks is that of the batch.

    Args:
        per_task: (T,).
        parts: (P,) what these are made of, in the order of `Objective.parts`.
        weights: (B, T) what every row counted for; 0 where it did not.
    """

    per_task: Tensor
    parts: Tensor
    weights: Tensor


class Objective(nn.Module):
    """The losses of the tasks, added up by weight.

    Args:
        losses: the loss of each task; equal neighbours are computed together.
        task_weights: lambda of each task, at least 0.
        by_domain: how the losses of rows become one per task where domains count by themselves;
            None for the mean over all rows. Losses of the batch know no domains.

    Attributes:
        parts: the task and the name of every part that is told apart.
        weighted: tasks whose rows count for more or less than the data say.
    """

    task_weights: Tensor
    pos_weights: Tensor
    on_negatives: Tensor
    on_positives: Tensor
    shares: Tensor
    chosen: Tensor
    chosen_levels: Tensor

    def __init__(
        self,
        losses: Sequence[TaskLoss],
        task_weights: Sequence[float],
        by_domain: DomainMeans | None = None,
    ) -> None:
        super().__init__()
        self._by_domain = by_domain
        runs = groupby(enumerate(losses), key=lambda pair: pair[1].row)
        self._runs = [(row, [task for task, _ in run]) for row, run in runs]
        self._of_batch = [(t, loss) for t, loss in enumerate(losses) if loss.of_batch is not None]
        with_level = [t for t, loss in enumerate(losses) if loss.has_level]
        self._has_propensity = any(loss.propensity != "none" for loss in losses)
        self._has_pos_weight = any(loss.pos_weight != 1 for loss in losses)
        self._reweighed = [(t, each.reweigh) for t, each in enumerate(losses) if each.reweigh]
        self.weighted = [
            t
            for t, each in enumerate(losses)
            if each.propensity != "none" or each.pos_weight != 1 or each.reweigh
        ]
        tables = {
            "task_weights": task_weights,
            "pos_weights": [loss.pos_weight for loss in losses],
            "on_positives": [float(loss.propensity != "none") for loss in losses],
            "on_negatives": [float(loss.propensity == "both") for loss in losses],
            "shares": [loss.alpha if loss.of_batch else 1.0 for loss in losses],
        }
        for name, numbers in tables.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32), persistent=False)
        chosen = [t for t, _ in self._of_batch]
        self._level = {t: j for j, t in enumerate(t for t in chosen if t in with_level)}
        places = {
            "chosen": chosen,
            "chosen_levels": [j for j, t in enumerate(with_level) if t in self._level],
        }
        for name, indices in places.items():
            self.register_buffer(name, torch.tensor(indices, dtype=torch.int64), persistent=False)
        self.parts = [
            (t, name)
            for t, loss in self._of_batch
            if loss.of_batch is not None
            for name in ("bce", loss.of_batch.name)
        ]

    def forward(
        self, logits: Tensor, targets: Targets, levels: Tensor | None = None
    ) -> tuple[Tensor, Losses]:
        """The scalar to differentiate, and what it is made of.

        The mean of either over the ranks is its value on the global batch. Computed in float32.

        Collective: every rank calls it, once per step, with as many rows.

        Args:
            logits: z (B, T).
            targets: labels, what counts and how much.
            levels: (B, J) of the tasks that have one, in their order; None where none has.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # A weight of 0 does not silence a NaN label: 0 * NaN is NaN.
        labels = torch.where(targets.valid > 0, targets.labels, 0).to(logits.dtype)
        weights = self._weights(labels, targets).to(logits.dtype)
        rows = [
            row(logits[:, tasks[0] : tasks[-1] + 1], labels[:, tasks[0] : tasks[-1] + 1])
            for row, tasks in self._runs
        ]
        per_row = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        factors = self._importance(logits, labels)
        if factors is not None:
            per_row = per_row * factors
        per_task = self._mean(per_row, weights, targets.domain)
        parts = per_task.new_empty(0)
        if self._of_batch:
            columns = _Columns(logits, labels, weights, levels)
            of_batch = self._batch_losses(columns, targets.group)
            chosen = self.chosen
            parts = torch.stack([per_task[chosen], of_batch], 1).flatten().detach()
            rest = torch.zeros_like(per_task).index_add(0, chosen, of_batch)
            per_task = self.shares * per_task + (1 - self.shares) * rest
        total = (per_task * self.task_weights).sum()
        counted = weights if factors is None else weights * factors
        return total, Losses(per_task.detach(), parts, counted)

    def _mean(self, losses: Tensor, weights: Tensor, domain: Tensor | None) -> Tensor:
        """One loss per task, (T,)."""
        if self._by_domain is None:
            return global_mean(losses, weights)
        if domain is None:
            raise ValueError("domains count by themselves, but targets.domain is None")
        return self._by_domain(losses, weights, domain)

    def _weights(self, labels: Tensor, targets: Targets) -> Tensor:
        """`w = v w_data w_propensity pos_weight`, without a gradient."""
        weights = (targets.valid * targets.weights).detach()
        if self._has_propensity:
            if targets.propensity is None:
                raise ValueError("a task weighs exposures, but targets.propensity is None")
            counts = torch.where(labels > 0.5, self.on_positives, self.on_negatives) > 0
            weights = weights * torch.where(counts, targets.propensity.detach(), 1)
        if self._has_pos_weight:
            weights = weights * torch.where(labels > 0.5, self.pos_weights, 1)
        return weights

    def _importance(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """What the losses of rows are multiplied by, (B, T); None where no task asks for it.

        It multiplies losses and not weights, which would divide by their sum in each batch.
        """
        if not self._reweighed:
            return None
        factors = list(torch.ones_like(logits).unbind(1))
        for task, rule in self._reweighed:
            factors[task] = importance(rule, logits, labels[:, task], task)
        return torch.stack(factors, 1)

    def _batch_losses(self, columns: _Columns, group: Tensor | None) -> Tensor:
        """The losses of the batch, one for each task that has one.

        Collective: the rows of all ranks are gathered once for all tasks.
        """
        own = columns.of(self.chosen, self.chosen_levels)
        every = own.of_all_ranks()
        own_group = every_group = None
        if any(loss.is_grouped for _, loss in self._of_batch):
            if group is None:
                raise ValueError("a loss compares rows of a group, but targets.group is None")
            own_group, every_group = group, gathered(group)
        found = []
        for at, (task, loss) in enumerate(self._of_batch):
            assert loss.of_batch is not None
            level, grouped = self._level.get(task), loss.is_grouped
            mine = own.rows(at, level, own_group if grouped else None)
            theirs = every.rows(at, level, every_group if grouped else None)
            found.append(loss.of_batch(mine, theirs))
        return torch.stack(found)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Logits, labels and weights (B, T) of some tasks, and the levels (B, J) of those with one."""

    logits: Tensor
    labels: Tensor
    weights: Tensor
    levels: Tensor | None

    def of(self, tasks: Tensor, levels: Tensor) -> _Columns:
        """Those of some tasks, each task's rows in one piece of memory."""
        picked = None
        if len(levels):
            if self.levels is None:
                raise ValueError("a loss needs the level of its task, but levels is None")
            picked = _picked(self.levels.to(self.logits.dtype), levels)
        return _Columns(
            _picked(self.logits, tasks),
            _picked(self.labels, tasks),
            _picked(self.weights, tasks),
            picked,
        )

    def of_all_ranks(self) -> _Columns:
        """The rows of all ranks, in the order of the ranks, without a gradient; in one exchange.

        Collective: every rank calls it with as many rows.
        """
        parts = [self.logits, self.labels, self.weights]
        parts += [] if self.levels is None else [self.levels]
        every = gathered(torch.cat([part.detach() for part in parts], 1))
        pieces = every.t().contiguous().t().split([part.shape[1] for part in parts], 1)
        levels = None if self.levels is None else pieces[3]
        return _Columns(pieces[0], pieces[1], pieces[2], levels)

    def rows(self, task: int, level: int | None, groups: Tensor | None) -> Rows:
        """One task's rows."""
        levels = None if level is None or self.levels is None else self.levels[:, level]
        columns = (self.logits[:, task], self.labels[:, task], self.weights[:, task])
        return Rows(*columns, groups, levels)


def _picked(columns: Tensor, indices: Tensor) -> Tensor:
    """Some of the columns (B, ...), each contiguous."""
    return columns.t().index_select(0, indices).t()
