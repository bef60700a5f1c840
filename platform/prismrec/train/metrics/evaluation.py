"""Metrics of all tasks over rows that arrive in batches on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from prismrec.train.metrics.arrays import Floats, Ints, ratio
from prismrec.train.metrics.bootstrap import Resampling, canonical_order, resampled_sums
from prismrec.train.metrics.calibration import (
    CalibrationCurve,
    curve_of,
    mass_cuts,
    mass_sums,
    width_sums,
)
from prismrec.train.metrics.exchange import Ranks
from prismrec.train.metrics.functions import (
    grouped_auc_sums,
    label_entropy,
    row_log_loss,
    sigmoid,
)
from prismrec.train.metrics.pairs import auc_of, joined_pair_sums, pair_sums


@dataclass(frozen=True)
class _Rows:
    """Rows of one task on this rank, ascending in (logit, label, weight)."""

    logits: Floats
    labels: Floats
    weights: Floats
    group: Ints
    slices: tuple[Ints, ...]


class Evaluation:
    """Exact metrics per task and per slice, of rows spread over any number of ranks.

    A rank keeps the rows it saw in host memory. `compute` sends each row to the rank that owns its
    range of scores, then to the rank that owns its group, so no rank holds more than about its
    share of the rows (all rows of one score, or of one group, lie on one rank). How the rows are
    spread changes no value by more than the rounding of a float64 sum.

    | key | value |
    | --- | --- |
    | `task/rows` | rows that are valid and have weight |
    | `task/auc` | AUC, equal scores counting one half |
    | `task/gauc` | AUC within groups, weighted by the weight of their rows |
    | `task/logloss` | nats |
    | `task/ne`, `task/rig` | log loss over the entropy of the base rate, and 1 minus that |
    | `task/pcoc` | predicted over observed positives |
    | `task/ece`, `task/ece_mass` | calibration error in bins of equal width, of equal mass |
    | `task/{rows,auc,logloss,pcoc}/slice=value` | the same over the rows of one slice |
    | `task/gauc/slice` | AUC within slice values, weighted by the weight of their rows |

    A metric that has no value is NaN: AUC, GAUC and NE where all labels are equal, PCOC without
    positives, every metric but `rows` without rows or with a NaN logit. Slice values are those that
    some valid row has, so every slice key stands for at least one row.

    Args:
        tasks: names of the T tasks.
        slices: names of the columns of ids by which rows are sliced, such as `domain`; each should
            have few distinct values.
        grouped: rows carry a group worth averaging over; without it there is no `task/gauc`.
        bins: bins of the calibration error.
        process_group: a group that carries CPU tensors (gloo); the default group if None, and this
            process alone where none is initialised.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        slices: Sequence[str] = (),
        *,
        grouped: bool = True,
        bins: int = 100,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self.slices = tuple(slices)
        self._grouped = grouped
        self._bins = bins
        self._ranks = Ranks(process_group)
        self._values: list[NDArray[np.floating]] = []
        self._ids: list[Ints] = []

    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor,
        weights: Tensor,
        group: Tensor,
        slices: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add the rows of one batch of this rank; no communication, two copies from a device.

        Args:
            logits: (B, T).
            labels: (B, T) in [0, 1].
            valid: (B, T) in {0, 1}; where it is 0 the row does not count for the task.
            weights: (B, T), at least 0; evaluation weights, not importance weights of training.
            group: (B,) int64, user or request.
            slices: an id (B,) int64 for every name in `slices` of the constructor.

        Raises:
            ValueError: a shape differs, or the slices are not those of the constructor.
        """
        given = slices or {}
        if set(given) != set(self.slices):
            raise ValueError(f"slices must be {sorted(self.slices)}, got {sorted(given)}")
        columns = [group, *(given[name] for name in self.slices)]
        shape = (len(logits), len(self.tasks))
        shapes = [tuple(t.shape) for t in (logits, labels, valid, weights)]
        if set(shapes) != {shape} or any(tuple(c.shape) != shape[:1] for c in columns):
            raise ValueError(
                f"logits, labels, valid and weights must have shape {shape}, group and slices "
                f"{shape[:1]}; got {shapes} and {[tuple(c.shape) for c in columns]}"
            )
        parts = (logits.detach(), labels, valid * weights)
        dtype = reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
        values = torch.stack([part.to(dtype) for part in parts]).cpu().numpy()  # (3, B, T)
        ids = torch.stack([column.to(torch.int64) for column in columns]).cpu().numpy()
        kept = (values[2] > 0).any(axis=1)
        self._values.append(values[:, kept])
        self._ids.append(ids[:, kept])

    def compute(self) -> dict[str, float]:
        """Every metric of every task, by the keys of the class; the rows stay.

        Collective: every rank calls it, also one that holds no rows; all get the same values.
        """
        result: dict[str, float] = {}
        for task in self.tasks:
            result |= {f"{task}/{name}": value for name, value in self._task(task).items()}
        return result

    def auc_interval(
        self, task: str, resampling: Resampling | None = None, *, by_group: bool = False
    ) -> tuple[float, float]:
        """Lower and upper end of the bootstrap interval of the task's AUC.

        The interval does not depend on how the rows are spread over ranks.

        Collective: every rank calls it with the same arguments; all get the same values.

        Args:
            task: name of the task.
            resampling: 1,000 resamples, seed 0 and 95 % if None.
            by_group: resample groups of rows, not rows; wider where a user's rows are alike.
        """
        drawn = resampling or Resampling()
        rows = self._sorted_rows(task)
        positions = np.arange(rows.logits.size, dtype=np.int64)
        positions += int(self._before(rows.logits.size))
        keys = rows.group if by_group else positions
        sums = resampled_sums(rows.logits, rows.labels, rows.weights, keys, drawn)
        return drawn.interval(auc_of(joined_pair_sums(self._ranks.stack(sums))))

    def calibration_curve(self, task: str, bins: int = 20) -> CalibrationCurve:
        """The task's calibration in bins of equal mass, for a plot.

        Collective: every rank calls it with the same arguments; all get the same values.
        """
        return self._mass_curve(self._sorted_rows(task), bins)

    def _task(self, task: str) -> dict[str, float]:
        rows = self._sorted_rows(task)
        whole = self._segment_metrics(rows, np.zeros(rows.logits.size, np.int64), 1)
        result = {name: float(values[0]) for name, values in whole.items()}
        rate = result.pop("label_rate")
        result.pop("weight")
        result["ne"] = float(ratio(result["logloss"], label_entropy(rate)))
        result["rig"] = 1.0 - result["ne"]
        widths = width_sums(sigmoid(rows.logits), rows.labels, rows.weights, self._bins)
        result["ece"] = CalibrationCurve(*self._ranks.sum(widths)).error
        result["ece_mass"] = self._mass_curve(rows, self._bins).error
        if self._grouped:
            result["gauc"] = self._gauc(rows)
        for name, ids in zip(self.slices, rows.slices, strict=True):
            result |= self._slice_metrics(rows, name, ids)
        return result

    def _slice_metrics(self, rows: _Rows, name: str, ids: Ints) -> dict[str, float]:
        values = self._ranks.union(ids)
        metrics = self._segment_metrics(rows, np.searchsorted(values, ids), values.size)
        found = ~np.isnan(metrics["auc"]) | np.isnan(metrics["logloss"])
        share = metrics["weight"] * found
        scored = np.where(found, metrics["auc"], 0.0)
        result = {f"gauc/{name}": float(ratio((share * scored).sum(), share.sum()))}
        for metric in ("rows", "auc", "logloss", "pcoc"):
            for value, number in zip(values.tolist(), metrics[metric].tolist(), strict=True):
                result[f"{metric}/{name}={value}"] = number
        return result

    def _segment_metrics(self, rows: _Rows, segment: Ints, num: int) -> dict[str, Floats]:
        """Metrics (V,) of the rows of each segment over all ranks."""
        weights, labels = rows.weights, rows.labels
        columns = (
            np.ones_like(weights),
            weights,
            weights * row_log_loss(rows.logits, labels),
            weights * sigmoid(rows.logits),
            weights * labels,
        )
        local = np.array([np.bincount(segment, column, num) for column in columns], np.float64)
        count, weight, loss, predicted, observed = self._ranks.sum(local)
        order = np.argsort(segment, kind="stable")
        pairs = pair_sums(segment[order], rows.logits[order], labels[order], weights[order], num)
        return {
            "rows": count,
            "weight": weight,
            "auc": auc_of(joined_pair_sums(self._ranks.stack(pairs))),
            "logloss": ratio(loss, weight),
            "pcoc": ratio(predicted, observed),
            "label_rate": ratio(observed, weight),
        }

    def _mass_curve(self, rows: _Rows, bins: int) -> CalibrationCurve:
        local = float(rows.weights.sum())
        total = float(self._ranks.sum(np.array([local]))[0])
        cuts = mass_cuts(total, bins) - self._before(local)
        chances = sigmoid(rows.logits)
        sums = mass_sums(rows.logits, chances, rows.labels, rows.weights, cuts)
        return curve_of(self._ranks.sum(sums), total)

    def _gauc(self, rows: _Rows) -> float:
        columns = (rows.logits, rows.labels, rows.weights, rows.group)
        owned = self._ranks.exchange(columns, self._ranks.owner_by_id(rows.group))
        logits, labels, weights, group = owned
        sums = grouped_auc_sums(logits, labels, weights, group, "impressions")
        top, bottom = self._ranks.sum(np.array(sums, np.float64))
        return float(ratio(top, bottom))

    def _before(self, local: float) -> float:
        """Sum of `local` over the ranks before this one."""
        return float(self._ranks.stack(np.array([local], np.float64))[: self._ranks.rank].sum())

    def _sorted_rows(self, task: str) -> _Rows:
        """The task's rows in this rank's range of scores."""
        column = self.tasks.index(task)
        used = [values[2, :, column] > 0 for values in self._values]
        values = np.concatenate(
            [np.zeros((3, 0))]
            + [v[:, :, column][:, u] for v, u in zip(self._values, used, strict=True)],
            axis=1,
        )
        ids = np.concatenate(
            [np.zeros((1 + len(self.slices), 0), np.int64)]
            + [i[:, u] for i, u in zip(self._ids, used, strict=True)],
            axis=1,
        )
        owner = self._ranks.owner_by_score(values[0])
        columns = self._ranks.exchange([*values, *ids], owner)
        order = canonical_order(columns[0], columns[1], columns[2])
        logits, labels, weights, group, *slices = (column[order] for column in columns)
        return _Rows(logits, labels, weights, group, tuple(slices))
