"""One run of a study: trained in this process, looked at, and thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from benchmarks.fidelity.study import Study
from benchmarks.machine import commit
from prismrec.checkpoint import read_manifest
from prismrec.config import Recipe, UserError
from prismrec.data.fit_numbers import fit_numbers, write_statistics
from prismrec.data.source import DataSource, open_data
from prismrec.data.world_truth import NAME, TASKS, best_auc
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.models import spec_of
from prismrec.serving.inference import build_head
from prismrec.train.loop import Outcome, Session, train
from prismrec.train.process_group import process_group
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles

KINDS = ("auc", "gauc", "logloss", "ne", "pcoc", "auc_low", "auc_high")
"""Metrics of a task that are kept of the validation and test rows."""
ABOUT_TABLES = "parameters/tables"
ABOUT_DENSE = "parameters/dense"


@dataclass
class Record:
    """A tracker that keeps every number in memory.

    Args:
        metrics: by name, then by step.
    """

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Facts of the run are in its recipe."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep them."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, {})[step] = value

    def log_file(self, path: Path, folder: str = "") -> None:
        """Files go with the run."""

    def close(self) -> None:
        """Nothing waits."""


def run(study: Study, recipe: Recipe, threads: int) -> dict[str, Any]:
    """Train a recipe and give what is kept of it.

    Returns:
        `metrics` (by name: `test/...` and `valid/...` of the chosen checkpoint, what the study's
        probe and inspection saw there, means of what it keeps, parameters; `best/TASK/auc` on a
        world: the AUC of the true probabilities of the test rows), `seconds`, `examples_per_second`,
        `steps` and `commit`.

    Raises:
        UserError: the recipe does not fit the data, or a signal ended the run early.
    """
    torch.set_num_threads(threads)
    fit_statistics(recipe)
    source, record, began = open_data(recipe.data.path), Record(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        quiet = library_output(Path(scratch) / "log", verbose=False)
        with quiet, process_group("cpu") as ranks:

            def probe(shards: list[LocalShard], spec: EmbeddingSpec, step: int) -> dict[str, float]:
                numbers = sum(shard.weight.numel() for shard in shards)
                seen = {ABOUT_TABLES: float(numbers)}
                return seen | (study.probe(shards, spec, step) if study.probe else {})

            session = Session(ranks, RunFiles(Path(scratch)), record, "study", probe)
            outcome = train(recipe, source, session)
        if outcome.stopped_by in Signals.__members__:
            raise UserError(f"stopped by {outcome.stopped_by}; the run is not kept")
        chosen = int(read_manifest(outcome.checkpoint).extra["state"]["step"])
        inspected = study.inspect(outcome.checkpoint, recipe) if study.inspect else {}
    return {
        "metrics": _kept(study, record, outcome, chosen)
        | dict(inspected)
        | _dense_parameters(recipe, source)
        | _best(recipe, source),
        "seconds": round(time.perf_counter() - began, 1),
        "examples_per_second": round(outcome.examples_per_second),
        "steps": outcome.steps,
        "commit": commit(),
    }


def fit_statistics(recipe: Recipe) -> None:
    """Write what the recipe's numbers need of the training rows, where it says, unless it is there."""
    out = recipe.features.statistics
    if out is not None and not Path(out).exists():
        write_statistics(fit_numbers(recipe, open_data(recipe.data.path)), Path(out))


def _kept(study: Study, record: Record, outcome: Outcome, chosen: int) -> dict[str, float]:
    """The numbers of the chosen checkpoint that a page may show."""
    kept = {f"test/{n}": v for n, v in outcome.metrics.items() if _is_of_task(n)}
    for name, by_step in record.metrics.items():
        split, _, rest = name.partition("/")
        if split == "valid" and chosen in by_step and _is_of_task(rest):
            kept[name] = by_step[chosen]
        elif name.startswith(study.keep) and study.keep:
            kept[name] = sum(by_step.values()) / len(by_step)
        elif chosen in by_step and split not in ("train", "valid", "test", "data", "memory"):
            kept[name] = by_step[chosen]
    return kept


def _is_of_task(name: str) -> bool:
    """Whether a name is `task/metric` of all rows, not of a slice."""
    parts = name.split("/")
    return len(parts) == 2 and parts[1] in KINDS


def _dense_parameters(recipe: Recipe, source: DataSource) -> dict[str, float]:
    head = build_head(recipe, spec_of(recipe, source.schema))
    return {ABOUT_DENSE: float(sum(weight.numel() for weight in head.parameters()))}


def _best(recipe: Recipe, source: DataSource) -> dict[str, float]:
    """What no model can be expected to beat, where the true probabilities are known."""
    if source.schema.name != NAME:
        return {}
    return {
        f"best/{task.name}/auc": best_auc(recipe.data.path, task.label, recipe.data.splits.test)
        for task in recipe.tasks
        if task.label in TASKS
    }
