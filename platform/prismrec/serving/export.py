"""From a trained model to an inference copy that was shown to say the same.

Notation: B held-out rows, T tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import (
    HeldOutLabels,
    bounds_of,
    check_compressed,
    check_parity,
    compare_compressed,
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that the model was not trained on, and what the trainer says of them.

    Args:
        columns: raw columns, as `InferenceModel.predict_logits` takes them.
        logits: (B, T) of the trainer, autocast off, fp32 tables, right for down-sampled negatives,
            before any calibration.
        labels: (B, T) in {0, 1}.
        valid: (B, T) in {0, 1}: the row counts for the task.
    """

    columns: Mapping[str, Any]
    logits: Tensor
    labels: Tensor
    valid: Tensor


def export_model(out: Path, source: BundleSource, held_out: HeldOut) -> dict[str, float]:
    """Write the inference copy that `recipe.export` asks for; nothing stays of one that fails.

    The fp32 copy is always made and held against the trainer; tables of another type are then held
    against the fp32 copy, which is removed.

    Args:
        out: the directory to make.
        source: the trained model.
        held_out: rows to compare on.

    Returns:
        What was compared, by metric: `max_difference_to_trainer` and, for compressed tables, what
        `compare_compressed` reports.

    Raises:
        UserError: the copy differs from the trainer, compression costs more than the recipe
            allows, or `out` exists.
    """
    table_type = source.recipe.export.table_type
    bounds = bounds_of(source.recipe.export)
    is_exact = table_type == "fp32"
    exact = out if is_exact else out.with_name(f".{out.name}.fp32")
    write_bundle(exact, source, "fp32")
    try:
        logits = _logits(exact, held_out)
        report = {"max_difference_to_trainer": check_parity(logits, held_out.logits)}
    except BaseException:
        shutil.rmtree(exact)
        raise
    if is_exact:
        return report
    shutil.rmtree(exact)
    write_bundle(out, source, table_type)
    try:
        labels = HeldOutLabels(held_out.labels, held_out.valid)
        costs = compare_compressed(_logits(out, held_out), logits, labels, source.recipe.task_names)
        check_compressed(costs, bounds, table_type)
    except BaseException:
        shutil.rmtree(out)
        raise
    return report | costs


def _logits(bundle: Path, held_out: HeldOut) -> Tensor:
    # A calibration may be steep, and would hide or blow up what differs before it.
    return InferenceModel.load(bundle).predict_logits(held_out.columns, calibrated=False)
