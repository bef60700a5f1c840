"""Rows of two tasks for tests of `Evaluation`, and their metrics by the functions of one process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prismrec.train.metrics import (
    Evaluation,
    auc,
    expected_calibration_error,
    gauc,
    log_loss,
    normalized_entropy,
    pcoc,
    relative_information_gain,
    sigmoid,
)


def draw(rows: int, seed: int = 0) -> list[Tensor]:
    """Random logits (many equal), labels, valid, weights, group and domain of two tasks."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    logits = (integers(40, rows, 2) - 20).double() / 8
    labels = (torch.rand(rows, 2, generator=generator) < torch.sigmoid(logits - 0.5)).float()
    valid = (integers(4, rows, 2) > 0).float()
    weights = integers(5, rows, 2).float() / 4
    return [logits, labels, valid, weights, integers(rows // 4 + 1, rows), integers(3, rows) - 1]


def fill(evaluation: Evaluation, rows: Sequence[Tensor], cuts: Sequence[int]) -> None:
    """Update with the rows in batches between the cuts."""
    logits, labels, valid, weights, group, domain = rows
    for start, stop in itertools.pairwise(cuts):
        part = slice(start, stop)
        evaluation.update(
            logits[part],
            labels[part],
            valid[part],
            weights[part],
            group[part],
            {"domain": domain[part]},
        )


def expected(rows: Sequence[Tensor], tasks: Sequence[str]) -> dict[str, float]:
    """The metrics of the functions, on the rows of each task."""
    logits, labels, valid, weights, group, domain = (column.numpy() for column in rows)
    result = {}
    for t, task in enumerate(tasks):
        kept = (valid * weights)[:, t] > 0
        z, y, w = logits[kept, t], labels[kept, t], weights[kept, t]
        p, g, d = sigmoid(z), group[kept], domain[kept]
        result |= {
            f"{task}/rows": kept.sum(),
            f"{task}/auc": auc(z, y, w),
            f"{task}/gauc": gauc(z, y, g, w),
            f"{task}/logloss": log_loss(z, y, w),
            f"{task}/ne": normalized_entropy(z, y, w),
            f"{task}/rig": relative_information_gain(z, y, w),
            f"{task}/pcoc": pcoc(p, y, w),
            f"{task}/ece": expected_calibration_error(p, y, w),
            f"{task}/ece_mass": expected_calibration_error(p, y, w, equal_mass=True),
            f"{task}/gauc/domain": gauc(z, y, d, w),
        }
        for value in np.unique(d):
            inside = d == value
            name = f"domain={value}"
            result[f"{task}/rows/{name}"] = inside.sum()
            result[f"{task}/auc/{name}"] = auc(z[inside], y[inside], w[inside])
            result[f"{task}/logloss/{name}"] = log_loss(z[inside], y[inside], w[inside])
            result[f"{task}/pcoc/{name}"] = pcoc(p[inside], y[inside], w[inside])
    return result
