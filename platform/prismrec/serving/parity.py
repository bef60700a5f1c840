"""Does an inference copy say what the trainer says, and what does a compressed one lose?

Notation: B held-out rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from prismrec.config import UserError
from prismrec.config.train import ExportSection
from prismrec.serving.tables import TableType
from prismrec.train.metrics.functions import auc, log_loss

TOLERANCE = 1e-4
"""Largest difference of a logit between trainer and fp32 copy."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What compressed tables may cost.

    Args:
        auc: largest loss of AUC.
        logloss: largest change of LogLoss, in nats.
    """

    auc: float
    logloss: float


def bounds_of(section: ExportSection) -> Bounds:
    """The bounds that a recipe sets, or the usual ones of its table type."""
    return Bounds(*section.bounds)


def check_parity(copy: Tensor, trainer: Tensor) -> float:
    """Compare the logits of the fp32 copy with the trainer's on the same rows.

    Args:
        copy: (B, T) logits of the inference copy.
        trainer: (B, T) logits of the trainer with autocast off, offsets for negative
            down-sampling added as in the copy.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: it is over `TOLERANCE`, or there are no rows.
    """
    if copy.shape != trainer.shape or not len(copy):
        raise UserError(
            f"export: the inference copy gave logits of shape {tuple(copy.shape)} and the trainer "
            f"{tuple(trainer.shape)}; both need the same held-out rows, at least one"
        )
    difference = (copy.double() - trainer.double()).abs()
    largest = float(difference.max())
    if not largest <= TOLERANCE:
        row, task = divmod(int(difference.nan_to_num(float("inf")).argmax()), copy.shape[1])
        raise UserError(
            f"export: the inference copy differs from the trainer by {largest:.2e} in the logit of "
            f"row {row}, task {task} ({float(copy[row, task]):.6f} against "
            f"{float(trainer[row, task]):.6f}); at most {TOLERANCE:g} is allowed, so nothing is "
            "registered; compare the bundle's recipe and tables with the checkpoint's"
        )
    return largest


@dataclass(frozen=True, slots=True)
class HeldOutLabels:
    """Labels of the held-out rows.

    Args:
        labels: (B, T) in {0, 1}.
        valid: (B, T) in {0, 1}: the row counts for the task.
    """

    labels: Tensor
    valid: Tensor


def compare_compressed(
    compressed: Tensor, exact: Tensor, held_out: HeldOutLabels, tasks: Sequence[str]
) -> dict[str, float]:
    """What compressed tables change against the fp32 copy, for each task.

    Args:
        compressed: (B, T) logits of the compressed copy.
        exact: (B, T) logits of the fp32 copy.
        held_out: labels of the rows.
        tasks: names of the T tasks.

    Returns:
        `<task>/max_logit_difference`, `<task>/mean_logit_difference`, `<task>/auc_change` and
        `<task>/logloss_change`, the changes as compressed minus exact; a change that has no value
        because the labels are all equal or missing is NaN.
    """
    report = {}
    for index, task in enumerate(tasks):
        after, before = compressed[:, index].double(), exact[:, index].double()
        labels = held_out.labels[:, index].numpy()
        valid = held_out.valid[:, index].numpy()
        difference = (after - before).abs()
        report[f"{task}/max_logit_difference"] = float(difference.max())
        report[f"{task}/mean_logit_difference"] = float(difference.mean())
        report[f"{task}/auc_change"] = auc(after.numpy(), labels, valid) - auc(
            before.numpy(), labels, valid
        )
        report[f"{task}/logloss_change"] = log_loss(after.numpy(), labels, valid) - log_loss(
            before.numpy(), labels, valid
        )
    return report


@dataclass(frozen=True, slots=True)
class Excess:
    """A change that is over its bound.

    Args:
        task: name of the task.
        metric: `AUC` or `LogLoss`.
        change: what changed, compressed minus exact.
        limit: what is allowed.
    """

    task: str
    metric: str
    change: float
    limit: float

    def __str__(self) -> str:
        return (
            f"the {self.metric} of task '{self.task}' by {self.change:+.2e}, more than "
            f"{self.limit:g}"
        )


def first_excess(report: dict[str, float], bounds: Bounds) -> Excess | None:
    """The first change of a comparison that is over its bound, None where there is none.

    Args:
        report: from `compare_compressed`.
        bounds: what is allowed.
    """
    for name, change in report.items():
        task, _, kind = name.rpartition("/")
        if kind == "auc_change" and -change > bounds.auc:
            return Excess(task, "AUC", change, bounds.auc)
        if kind == "logloss_change" and abs(change) > bounds.logloss:
            return Excess(task, "LogLoss", change, bounds.logloss)
    return None


def check_compressed(report: dict[str, float], bounds: Bounds, table_type: TableType) -> None:
    """Hold a comparison to its bounds.

    Raises:
        UserError: compressed tables lose more AUC, or move LogLoss further, than is allowed.
    """
    excess = first_excess(report, bounds)
    if excess is not None:
        key = "max_auc_change" if excess.metric == "AUC" else "max_logloss_change"
        raise UserError(
            f"export: {table_type} tables change {excess}, so nothing is registered; use a wider "
            f"export.table_type or set export.{key}"
        )
