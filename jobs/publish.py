"""From a trained checkpoint to a checked inference copy in the registry."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prismrec.checkpoint import CheckpointReader, read_manifest, row_owners
from prismrec.config import Recipe, UserError, dump, from_dict
from prismrec.config.redact import redacted
from prismrec.data.encode.copies import copied_files, with_copies
from prismrec.data.schema import DataSchema
from prismrec.models import spec_of
from prismrec.models.calibration import LogitMap
from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.export import HeldOut, export_model
from prismrec.serving.inference import build_head
from prismrec.tracking.plots import plot_calibration, plot_loss, plot_pushes
from prismrec.tracking.registry import ModelVersionInfo, Registry
from prismrec.tracking.run import MlflowTracker
from prismrec.train.calibration import FILE, read_maps
from prismrec.train.events import read_events
from prismrec.train.gradients import read_pushes
from prismrec.train.held_out import PARTS
from prismrec.train.run_files import RunFiles

_log = logging.getLogger(__name__)


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
    report = export_checkpoint(recipe, checkpoint, files)
    tracker.log_metrics({f"export/{k}": v for k, v in report.items()}, outcome["steps"])
    tracker.log_file(files.plan)
    if files.gradients.exists():
        tracker.log_file(files.gradients)
    tracker.log_text(json.dumps(redacted(dump(recipe)), indent=1), "recipe.json")
    for picture in draw_plots(recipe, files):
        tracker.log_file(picture, "plots")
    if recipe.registered_name is None:
        return Published(str(files.bundle), None, tracker.run_id)
    tracker.flush()
    try:
        info = _register(recipe, files, outcome, tracker.run_id)
    except UserError as error:
        raise UserError(
            f"{error.message}; the inference copy is in {files.bundle}, and --resume registers it"
        ) from error
    return Published(f"models:/{info.name}/{info.version}", info.version, tracker.run_id)


def _register(
    recipe: Recipe, files: RunFiles, outcome: dict[str, Any], run_id: str
) -> ModelVersionInfo:
    """The inference copy as the next version of the recipe's model."""
    checkpoint, name = Path(outcome["checkpoint"]), recipe.registered_name
    assert name is not None
    return Registry(recipe.tracking.uri).register(
        run_id,
        files.bundle,
        name,
        outcome["metrics"],
        {
            "data": recipe.data.path,
            "data_fingerprint": read_manifest(checkpoint).extra["fingerprint"],
            "checkpoint": str(checkpoint),
        },
    )


def export_checkpoint(recipe: Recipe, checkpoint: Path, files: RunFiles) -> dict[str, float]:
    """Write the inference copy of a checkpoint and hold it against the trainer's logits.

    Returns:
        What was compared, see `export_model`.

    Raises:
        UserError: they differ by more than is allowed; no copy is left then.
    """
    with _source(recipe, checkpoint) as source:
        return export_model(files.bundle, source, read_held_out(files.held_out, recipe))


def bundle_of_checkpoint(checkpoint: Path, out: Path) -> Path:
    """The fp32 inference copy of any checkpoint, for evaluating or predicting from it."""
    recipe = from_dict(read_manifest(checkpoint).extra["recipe"], source=str(checkpoint))
    with _source(recipe, checkpoint) as source:
        return write_bundle(out, source, "fp32")


def read_held_out(path: Path, recipe: Recipe) -> HeldOut:
    """The rows that the trainer put aside, with its own logits."""
    table = pq.read_table(path)
    parts = {
        part: torch.from_numpy(
            np.stack([table.column(f"__{part}_{task}").to_numpy() for task in recipe.task_names], 1)
        )
        for part in PARTS
    }
    columns = {name: table.column(name).combine_chunks() for name in recipe.raw_columns}
    return HeldOut(columns, parts["logit"], parts["label"], parts["valid"])


def draw_plots(recipe: Recipe, files: RunFiles) -> list[Path]:
    """Loss by step and calibration on the test rows, as PNG files in the run's directory."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    names = {"train": "train/loss"}
    names |= {f"valid {task}": f"valid/{task}/logloss" for task in recipe.task_names}
    for event in read_events(files.events):
        for label, name in names.items():
            value = event.get("values", {}).get(name)
            if event["event"] == "metrics" and value is not None:
                steps, values = curves.setdefault(label, ([], []))
                steps.append(event["step"])
                values.append(value)
    drawn = [plot_loss(curves, files.directory / "loss.png")] if curves else []
    if files.gradients.exists():
        drawn.append(plot_pushes(_pushes(files.gradients), files.directory / "gradients.png"))
    if files.curves.exists():
        bins = {
            task: (np.array(c["predicted"]), np.array(c["observed"]), np.array(c["weight"]))
            for task, c in json.loads(files.curves.read_text()).items()
        }
        if bins:
            drawn.append(plot_calibration(bins, files.directory / "calibration.png"))
    return drawn


def _pushes(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Mean gradients by step of every task's negatives and positives, whatever is predicted."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for step, push in read_pushes(path):
        if push.from_p is None:
            steps, means = curves.setdefault(f"{push.task} {push.label}", ([], []))
            steps.append(step)
            means.append(push.mean)
    return curves


def _maps(recipe: Recipe, checkpoint: Path) -> tuple[LogitMap, ...]:
    maps = read_maps(checkpoint / FILE, recipe.task_names)
    if not maps:
        _log.warning("%s: no calibration was fitted to this checkpoint; it is left out", checkpoint)
    return tuple(maps)


def with_tables_of(recipe: Recipe, trained: Recipe) -> Recipe:
    """The recipe with the propensities of the run that trained, whose tables are filled in."""
    tasks = tuple(
        task.model_copy(update={"propensity": other.propensity})
        for task, other in zip(recipe.tasks, trained.tasks, strict=True)
    )
    return recipe.model_copy(update={"tasks": tasks})


@contextmanager
def _source(recipe: Recipe, checkpoint: Path) -> Iterator[BundleSource]:
    """A checkpoint's tables and dense weights (averaged ones where there are any)."""
    with CheckpointReader(checkpoint) as reader:
        extra = reader.manifest.extra
        recipe = with_tables_of(recipe, from_dict(extra["recipe"], source=str(checkpoint)))
        schema = DataSchema.model_validate(extra["schema"])
        reader.verify_copies()
        spec = spec_of(with_copies(recipe, checkpoint), schema)
        weights = reader.dense("dense") | reader.dense("ema")
        head = build_head(recipe, spec)
        head.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
        origin = {"step": extra["state"]["step"], "data_fingerprint": extra["fingerprint"]}
        copies = tuple(copied_files(recipe, checkpoint).values())

        def owners(table: str) -> Tensor:
            return row_owners(reader, table)

        maps = () if recipe.calibration is None else _maps(recipe, checkpoint)
        yield BundleSource(recipe, schema, spec, reader.table, head, origin, copies, owners, maps)
