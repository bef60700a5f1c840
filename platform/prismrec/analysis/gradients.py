"""How hard losses push the logits of a trained model, and the field vectors behind them.

The same logits are held against several losses, so that what differs is the loss alone. Gradients are
multiplied by the rows of their batch: a cross-entropy then pushes a negative by its probability,
whatever the size of batches.

Notation: B rows of a batch, T tasks, J of them with a level, z logits, p = sigmoid(z), N_m fields of
set m.

Source: Lin et al., "Understanding the Ranking Loss for Recommendation with Sparse User Feedback",
KDD 2024: under a cross-entropy the gradients of negatives vanish where positives are rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prismrec.analysis.subject import Progress, Sample, Subject
from prismrec.config import Recipe
from prismrec.config.objectives import BceRankNet
from prismrec.models import Inputs, fields_of
from prismrec.models.objectives import Decoder, Objective, Targets, TaskLoss, build_decoder
from prismrec.models.objectives import task_loss as built_loss
from prismrec.models.objectives.losses import RankNet

LABELS = ("negatives", "positives")
ALPHA = 0.9
"""Share of the cross-entropy beside pairs, where a recipe does not say."""
EDGES = tuple(10 ** (tenths / 5) for tenths in range(-20, 0))
"""Edges of the bins of p: five for each power of ten, from 1e-4 to 1."""
FIELD_ROWS = 16_384
"""Rows that the gradients of field vectors are taken over."""


@dataclass(frozen=True, slots=True)
class NamedLoss:
    """A loss of every task by itself.

    Args:
        name: what plots call it.
        objective: of the T tasks, each of weight 1.
        is_own: whether the recipe trains with it.
    """

    name: str
    objective: Objective
    is_own: bool = False


CROSS_ENTROPY = "cross-entropy"
OWN = "its own loss"
"""Where it is neither of the others."""


def losses_of(recipe: Recipe) -> tuple[list[NamedLoss], list[str]]:
    """The losses to compare: cross-entropy, the same beside pairs, and the recipe's own.

    The own one is each task's loss with the weight of its positives, of rows that weigh 1 each.

    Returns:
        Losses, each once, and a sentence for every part of the recipe's own that they lack.
    """
    own = [built_loss(f"tasks[{at}].loss", task.loss) for at, task in enumerate(recipe.tasks)]
    own = [
        replace(loss, pos_weight=task.pos_weight)
        for loss, task in zip(own, recipe.tasks, strict=True)
    ]
    shares = [each.loss.alpha for each in recipe.tasks if isinstance(each.loss, BceRankNet)]
    alpha = shares[0] if shares else ALPHA
    pairs = TaskLoss(of_batch=RankNet(), alpha=alpha)
    chosen = {
        CROSS_ENTROPY: [TaskLoss()] * len(own),
        f"{alpha:g} cross-entropy + {1 - alpha:.2g} RankNet": [pairs] * len(own),
    }
    missing = []
    if any(each.is_grouped for each in own):
        missing.append("its own loss compares rows of a group, which the sample does not name")
    elif own not in chosen.values():
        chosen[OWN] = own
    if any(task.propensity is not None for task in recipe.tasks):
        missing.append("weights against repeated exposure are left out of its loss")
    if recipe.train.domain_reduction != "global_mean":
        missing.append("its losses are means over all rows here, not over domains")
    weights = [1.0] * len(own)
    return [
        NamedLoss(name, Objective(each, weights), each == own) for name, each in chosen.items()
    ], missing


def targets_of(labels: Tensor) -> Targets:
    """Labels (B, T), NaN where there is none, as an objective takes them; every row weighs 1."""
    valid = (~labels.isnan()).float()
    return Targets(labels.nan_to_num(), valid, torch.ones_like(valid))


def column_gradients(
    loss: NamedLoss, columns: Tensor, labels: Tensor, decoder: Decoder
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to what a model gives, and to the tasks' logits z, by the batch's rows.

    Args:
        loss: whose gradients.
        columns: (B, T + J) as the model gives them.
        labels: (B, T), NaN where a task has no valid label.
        decoder: from columns to logits.

    Returns:
        (B, T + J) and (B, T), each task's multiplied by its valid rows.
    """
    columns = columns.detach().float().requires_grad_()
    with torch.enable_grad():
        logits, levels = decoder(columns)
        total, _ = loss.objective(logits, targets_of(labels), levels)
        of_columns, of_logits = torch.autograd.grad(total, [columns, logits])
    rows = (~labels.isnan()).sum(0)
    return of_columns * torch.cat([rows, rows[decoder.tasks]]), of_logits * rows


@dataclass(frozen=True, slots=True)
class LogitPushes:
    """Mean |dL/dz| of some rows, times the rows of their batch.

    Args:
        loss: name of the loss.
        task: name of the task.
        label: `negatives` or `positives`.
        mean: of all of them; 0 without any.
        rows: how many there are.
        by_bin: (bins,) mean of those in each bin of p, NaN without any; bin k ends at `EDGES[k]`.
        bin_rows: (bins,) how many are in each.
    """

    loss: str
    task: str
    label: str
    mean: float
    rows: int
    by_bin: Tensor
    bin_rows: Tensor


@dataclass(frozen=True, slots=True)
class FieldPushes:
    """Mean length of the gradient of a field's vector, times the rows of its batch.

    Args:
        loss: name of the loss.
        task: the task whose loss it is.
        label: `negatives` or `positives`.
        set_name: the set.
        by_field: mean of each field that the set covers, by its name.
    """

    loss: str
    task: str
    label: str
    set_name: str
    by_field: dict[str, float]


@dataclass(frozen=True, slots=True)
class Pushes:
    """What was measured of one model.

    Args:
        logits: of every loss, task and label.
        fields: the same of every set.
        missing: see `losses_of`.
    """

    logits: list[LogitPushes]
    fields: list[FieldPushes]
    missing: list[str]


def measure_pushes(subject: Subject, progress: Progress) -> Pushes:
    """Gradients of logits over the sample, and of field vectors over `FIELD_ROWS` of its rows."""
    losses, missing = losses_of(subject.recipe)
    decoder = build_decoder(subject.recipe)
    tasks = subject.recipe.task_names
    sums = _LogitSums(len(losses), len(tasks))
    of_fields = _FieldSums(subject, len(losses))
    done = 0
    for sample in subject.samples():
        wants_fields = done < FIELD_ROWS and bool(sample.inputs.sets)
        columns, leaves = _forward(subject, sample.inputs, needs_grad=wants_fields)
        for at, loss in enumerate(losses):
            of_columns, pushes = column_gradients(loss, columns, sample.labels, decoder)
            p = torch.sigmoid(decoder(columns.detach().float())[0])
            sums.add(at, p, sample.labels, pushes.abs())
            if wants_fields:
                of_fields.add(at, sample, (columns, leaves, of_columns))
        done += len(sample.labels)
        progress(f"{subject.name}: gradients", done, subject.num_rows)
    names = [each.name for each in losses]
    return Pushes(sums.read(names, tasks), of_fields.read(names), missing)


def _forward(subject: Subject, inputs: Inputs, *, needs_grad: bool) -> tuple[Tensor, list[Tensor]]:
    """What the model gives, and the sets that it read, as leaves."""
    leaves = [each.detach().requires_grad_(needs_grad) for each in inputs.sets]
    with torch.set_grad_enabled(needs_grad):
        columns, _ = subject.model(replace(inputs, sets=leaves))
    return columns, leaves


class _LogitSums:
    """Sums of |dL/dz| by loss, task, label and bin of p."""

    def __init__(self, losses: int, tasks: int) -> None:
        self._edges = torch.tensor(EDGES)
        self._sums = torch.zeros(2, losses, tasks, 2, len(EDGES) + 1, dtype=torch.float64)

    def add(self, loss: int, p: Tensor, labels: Tensor, pushes: Tensor) -> None:
        """The rows of a batch, (B, T) each."""
        bins = torch.bucketize(p.contiguous(), self._edges, right=True)
        num_tasks, size = labels.shape[1], self._sums.shape[-1]
        place = (torch.arange(num_tasks) * 2 + (labels > 0.5)) * size + bins
        valid = ~labels.isnan()
        for what, values in enumerate((torch.ones_like(pushes), pushes)):
            flat = self._sums[what, loss].view(-1)
            flat.index_add_(0, place[valid], values[valid].double())

    def read(self, losses: Sequence[str], tasks: Sequence[str]) -> list[LogitPushes]:
        """The means."""
        found = []
        for at, loss in enumerate(losses):
            for t, task in enumerate(tasks):
                for y, label in enumerate(LABELS):
                    rows, pushes = self._sums[:, at, t, y]
                    total = float(rows.sum())
                    mean = float(pushes.sum()) / max(total, 1)
                    by_bin = torch.where(rows > 0, pushes / rows, torch.nan)
                    found.append(
                        LogitPushes(loss, task, label, mean, int(total), by_bin, rows.long())
                    )
        return found


_Ran = tuple[Tensor, list[Tensor], Tensor]
"""What a model gave (B, T + J), the sets it read, and the gradients of what it gave."""


class _FieldSums:
    """Sums of the lengths of field vectors' gradients by loss, task, label and set."""

    def __init__(self, subject: Subject, losses: int) -> None:
        shapes = fields_of(subject.recipe, subject.spec)
        self._sets = shapes.sets
        self._tasks = subject.recipe.task_names
        self._names = [
            names[:count] for names, count in zip(shapes.set_names, shapes.set_fields, strict=True)
        ]
        self._level_of = [t for t, each in enumerate(subject.recipe.tasks) if each.has_level]
        self._rows = torch.zeros(losses, len(self._tasks), 2, dtype=torch.float64)
        self._sums = [
            torch.zeros(losses, len(self._tasks), 2, len(names), dtype=torch.float64)
            for names in self._names
        ]

    def add(self, loss: int, sample: Sample, ran: _Ran) -> None:
        """The rows of a batch: a backward pass for each task."""
        columns, leaves, of_columns = ran
        owners = torch.tensor([*range(len(self._tasks)), *self._level_of])
        for t in range(len(self._tasks)):
            own = of_columns * (owners == t)
            grads = torch.autograd.grad(
                columns, leaves, own.to(columns.dtype), retain_graph=True, allow_unused=True
            )
            label = sample.labels[:, t]
            for y, chosen in enumerate((label <= 0.5, label > 0.5)):
                self._rows[loss, t, y] += chosen.sum()
                for total, grad in zip(self._sums, grads, strict=True):
                    if grad is not None:
                        lengths = grad[chosen].norm(dim=-1)
                        total[loss, t, y] += lengths.sum(0, dtype=torch.float64)

    def read(self, losses: Sequence[str]) -> list[FieldPushes]:
        """The means."""
        means = [each / self._rows.clamp(min=1).unsqueeze(-1) for each in self._sums]
        return [
            FieldPushes(
                loss,
                task,
                label,
                set_name,
                dict(zip(names, mean[at, t, y].tolist(), strict=True)),
            )
            for at, loss in enumerate(losses)
            for t, task in enumerate(self._tasks)
            for y, label in enumerate(LABELS)
            for set_name, names, mean in zip(self._sets, self._names, means, strict=True)
        ]
