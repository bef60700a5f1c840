"""From a trained checkpoint to a checked inference copy in the registry."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.checkpoint import CheckpointReader
from prismrec.config import Recipe, from_dict
from prismrec.data.schema import DataSchema
from prismrec.embeddings.sets import embedding_spec
from prismrec.models.zoo import needs_linear
from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.inference import InferenceModel, build_head
from prismrec.serving.parity import (
    HeldOutLabels,
    bounds_of,
    check_compressed,
    check_parity,
    compare_compressed,
)
from prismrec.tracking.registry import Registry
from prismrec.tracking.run import MlflowTracker
from prismrec.train.held_out import HeldOut, read_held_out
from prismrec.train.run_files import RunFiles


@dataclass(frozen=True, slots=True)
class Published:
    """Where the model of a run is to be found.

    Args:
        model: `models:/NAME/VERSION`, or the directory of the inference copy if not registered.
        version: version in the registry, or None.
        run_id: the MLflow run.
    """

    model: str
    version: int | None
    run_id: str


def publish(
    recipe: Recipe, files: RunFiles, outcome: dict[str, Any], tracker: MlflowTracker
) -> Published:
    """Write the inference copy, hold it against the trainer's logits, register it.

    Raises:
        UserError: the copy's logits or metrics differ by more than is allowed; nothing is
            registered then.
    """
    checkpoint = Path(outcome["checkpoint"])
    held_out = read_held_out(files.held_out, recipe)
    report = export_checked(recipe, checkpoint, files.bundle, held_out)
    tracker.log_metrics({f"export/{k}": v for k, v in report.items()}, outcome["steps"])
    tracker.log_file(files.plan)
    for picture in sorted(files.directory.glob("*.png")):
        tracker.log_file(picture, "plots")
    if recipe.registered_name is None:
        return Published(str(files.bundle), None, tracker.run_id)
    tracker.flush()
    with CheckpointReader(checkpoint) as reader:
        extra = reader.manifest.extra
    info = Registry(recipe.tracking.uri).register(
        tracker.run_id,
        files.bundle,
        recipe.registered_name,
        outcome["metrics"],
        {
            "data": recipe.data.path,
            "data_fingerprint": extra["fingerprint"],
            "checkpoint": str(checkpoint),
        },
    )
    return Published(f"models:/{info.name}/{info.version}", info.version, tracker.run_id)


def export_checked(
    recipe: Recipe, checkpoint: Path, out: Path, held_out: HeldOut
) -> dict[str, float]:
    """Write the inference copy of a checkpoint in the recipe's table type and check it.

    The fp32 copy must give the trainer's logits; a compressed copy is then held against the fp32
    one within the recipe's bounds.

    Returns:
        `max_logit_difference` and, for compressed tables, `task/auc_change` and the like.
    """
    table_type = recipe.export.table_type
    bounds = bounds_of(recipe.export)
    exact = out if table_type == "fp32" else out.with_name(out.name + "-fp32")
    _write(recipe, checkpoint, exact, "fp32")
    logits = InferenceModel.load(exact).predict_logits(held_out.columns)
    report = {"max_logit_difference": check_parity(logits, held_out.logits)}
    if table_type == "fp32":
        return report
    _write(recipe, checkpoint, out, table_type)
    compressed = InferenceModel.load(out).predict_logits(held_out.columns)
    labels = HeldOutLabels(held_out.labels, held_out.valid)
    changes = compare_compressed(compressed, logits, labels, recipe.task_names)
    check_compressed(changes, bounds, table_type)
    shutil.rmtree(exact)
    return report | changes


def bundle_of_checkpoint(checkpoint: Path, out: Path) -> Path:
    """The fp32 inference copy of any checkpoint, for evaluating or predicting from it."""
    with CheckpointReader(checkpoint) as reader:
        recipe = from_dict(reader.manifest.extra["recipe"], source=str(checkpoint))
    return _write(recipe, checkpoint, out, "fp32")


def _write(recipe: Recipe, checkpoint: Path, out: Path, table_type: Any) -> Path:
    with CheckpointReader(checkpoint) as reader:
        extra = reader.manifest.extra
        schema = DataSchema.model_validate(extra["schema"])
        spec = embedding_spec(recipe, schema, needs_linear=needs_linear(recipe.model))
        weights = reader.dense("dense") | reader.dense("ema")
        head = build_head(recipe, spec)
        head.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
        origin = {"step": extra["state"]["step"], "data_fingerprint": extra["fingerprint"]}
        source = BundleSource(recipe, schema, spec, reader.table, head, origin)
        return write_bundle(out, source, table_type)
