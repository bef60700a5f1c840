"""A training run from recipe to registered model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.config import Recipe
from prismrec.config.external import find_modules_in
from prismrec.config.redact import without_password
from prismrec.data.encode.copies import with_absolute_paths
from prismrec.data.schema import DataSchema
from prismrec.data.source import DataSource, open_recipe_data
from prismrec.embeddings.communication import check_communication
from prismrec.embeddings.optimizers import check_optimizers
from prismrec.embeddings.plan import Placement, check_ways, choose_layouts
from prismrec.jobs.publish import Published, publish
from prismrec.jobs.run import Options, begun, outcome_of, run_ended
from prismrec.models import spec_of
from prismrec.train.initial import check_start, with_absolute_sources
from prismrec.train.process_group import resolve_device
from prismrec.train.run_files import RunFiles

_ANY_MEMORY = 2**62
"""Bytes of a rank where its memory is not known yet."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run.

    Args:
        files: the run's directory.
        published: the registered model and its tracking run.
        metrics: test metrics by `task/metric`.
        examples_per_second: over all workers, evaluations not counted.
        steps: steps done.
        stopped_by: "patience" if that ended it early, or "".
        unknown_ids: by feature, ids of training rows that no row of the table stands for.
        tracking: URI of the tracking server, without a password.
        skipped: row groups and files that could not be decoded.
        dropped_steps: steps whose rows are not in the weights because the loss was not finite.
    """

    files: RunFiles
    published: Published
    metrics: dict[str, float]
    examples_per_second: float
    steps: int
    stopped_by: str
    unknown_ids: dict[str, int]
    tracking: str
    skipped: list[dict[str, Any]]
    dropped_steps: list[int]

    def to_json(self) -> dict[str, Any]:
        """The document that `train --json` prints."""
        kinds = ("auc", "gauc", "logloss", "ne", "pcoc", "auc_low", "auc_high")
        shown = {k: v for k, v in self.metrics.items() if k.split("/")[1:] in [[x] for x in kinds]}
        return {
            "model": self.published.model,
            "version": self.published.version,
            "run": self.published.run_id,
            "test": shown,
            "examples_per_second": self.examples_per_second,
            "directory": str(self.files.directory),
            "unknown_ids": self.unknown_ids,
            "tracking": self.tracking,
            "skipped": self.skipped,
            "dropped_steps": self.dropped_steps,
        }


def run_training(recipe: Recipe, options: Options) -> Result:
    """Train, evaluate, export, check and register; everything is in MLflow and the run directory.

    SIGTERM and Ctrl-C save a checkpoint and leave; a second one leaves at once.

    Raises:
        UserError: the recipe does not fit the data or the device (before any process starts), a
            worker met bad data, or the exported copy differs from the trained model.
        RunStopped: a signal ended the run.
    """
    find_modules_in(str(Path.cwd()))
    recipe = with_absolute_data(recipe)
    source = check_before_start(recipe)
    if not options.resume:
        check_start(recipe, source)
    facts = {"data.fingerprint": source.fingerprint}
    with begun(recipe, options, facts) as run, run_ended(run.tracker, run.files):
        run.work(online=False)
        outcome = outcome_of(run.files)
        published = publish(run.recipe, run.files, outcome, run.tracker)
    return Result(
        run.files,
        published,
        outcome["metrics"],
        outcome["examples_per_second"],
        outcome["steps"],
        outcome["stopped_by"],
        outcome["unknown_ids"],
        without_password(run.tracker.uri),
        outcome["skipped"],
        outcome["dropped_steps"],
    )


def with_absolute_data(recipe: Recipe) -> Recipe:
    """The recipe with local paths of what it reads that mean the same in every process."""
    recipe, path = with_absolute_sources(with_absolute_paths(recipe)), recipe.data.path
    if "://" in path:
        return recipe
    data = recipe.data.model_copy(update={"path": str(Path(path).absolute())})
    return recipe.model_copy(update={"data": data})


def check_before_start(recipe: Recipe) -> DataSource:
    """Everything about recipe, data and device that can be wrong without starting a process.

    Raises:
        UserError: what is wrong.
    """
    source = open_recipe_data(recipe)
    check_machines(recipe, source.schema)
    return source


def check_machines(recipe: Recipe, schema: DataSchema) -> None:
    """What can be wrong about recipe and device, whatever the rows are.

    Raises:
        UserError: what is wrong.
    """
    device = resolve_device(recipe.train.device)
    spec = spec_of(recipe, schema)
    check_optimizers(spec, device)
    copies = recipe.embedding.ranks_per_copy
    for count in recipe.workers.counts:
        machines = Placement(count, count, device, _ANY_MEMORY, 1).one_copy(copies)
        if machines.world_size > 1:
            check_communication(spec, recipe.data.global_batch_size // count)
        check_ways(choose_layouts(spec, machines), machines)
