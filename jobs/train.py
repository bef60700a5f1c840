"""A training run from recipe to registered model."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prismrec.checkpoint import latest
from prismrec.checkpoint.directory import remove_unfinished
from prismrec.config import Recipe, UserError, flatten
from prismrec.config.external import find_modules_in
from prismrec.config.machine import threads_asked
from prismrec.config.redact import without_password
from prismrec.data.encode.copies import with_absolute_paths
from prismrec.data.schema import DataSchema
from prismrec.data.source import DataSource, open_recipe_data
from prismrec.embeddings.communication import check_communication
from prismrec.embeddings.optimizers import check_optimizers
from prismrec.embeddings.plan import Placement, check_ways, choose_layouts
from prismrec.jobs.launch import run_locally, run_on_ray
from prismrec.jobs.progress import console_of_stderr, shown_progress
from prismrec.jobs.publish import Published, publish
from prismrec.jobs.resume import check_resumable
from prismrec.models import spec_of
from prismrec.tracking.run import MlflowTracker
from prismrec.train.initial import check_start, with_absolute_sources
from prismrec.train.interrupts import asked, signals_ask, signals_end
from prismrec.train.process_group import resolve_device
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles, latest_run, new_run

NOTHING = "nothing is registered"
"""Of a run that registers one model, at its end."""
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


class RunStopped(Exception):  # noqa: N818 - nothing went wrong
    """The run left before its end because a signal asked it to; nothing was registered.

    Args:
        message: one sentence that says what is saved and how to go on.
        exit_code: 128 and the number of the signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is started.

    Args:
        use_ray: run the workers under Ray Train.
        resume: go on with the recipe's newest run.
        verbose: show what the libraries say.
        console: where progress is shown.
    """

    use_ray: bool = True
    resume: bool = False
    verbose: bool = False
    console: Console | None = None


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
    files = latest_run(recipe) if options.resume else new_run(recipe)
    if options.resume:
        recipe = resumable(recipe, files)
        files.begin()
    own = nullcontext(options.console) if options.console else console_of_stderr()
    with (
        own as console,
        signals_end(),
        library_output(files.directory / "log" / "driver.log", verbose=options.verbose),
    ):
        tracker = open_tracker(recipe, files)
        files.record({"run": tracker.run_id, "data": recipe.data.path})
        tracker.sample_system()
        tracker.log_parameters(flatten(recipe) | {"data.fingerprint": source.fingerprint})
        order = {
            "directory": str(files.directory),
            "attempt": secrets.token_hex(4),
            "verbose": options.verbose,
            "tracking": {"base": str(Path.cwd()), "run": tracker.run_id},
            "modules": str(Path.cwd()),
            "threads": threads_asked(),
        }
        with run_ended(tracker, files):
            with (
                shown_progress(files.events, console, recipe.task_names),
                signals_ask(files.stop()),
            ):
                (run_on_ray if options.use_ray else run_locally)(recipe, files, order)
            outcome = outcome_of(files)
            published = publish(recipe, files, outcome, tracker)
    return Result(
        files,
        published,
        outcome["metrics"],
        outcome["examples_per_second"],
        outcome["steps"],
        outcome["stopped_by"],
        outcome["unknown_ids"],
        without_password(tracker.uri),
        outcome["skipped"],
        outcome["dropped_steps"],
    )


@contextmanager
def run_ended(tracker: MlflowTracker, files: RunFiles, registered: str = NOTHING) -> Iterator[None]:
    """End the record in MLflow according to how the block ends, and leave nothing half-written.

    Args:
        tracker: the run's record.
        files: the run's directory.
        registered: what to say of the registry when a second signal ends the run.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        remove_unfinished(files.checkpoints)
        tracker.close("KILLED")
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        message = what_is_left(files, f"ended at once by {number.name}", registered)
        raise RunStopped(message, 128 + number) from error
    except RunStopped:
        tracker.close("KILLED")
        raise
    except BaseException:
        remove_unfinished(files.checkpoints)
        tracker.close("FAILED")
        raise
    tracker.close("FINISHED")


def outcome_of(files: RunFiles, registered: str = NOTHING) -> dict[str, Any]:
    """What the workers came to.

    Args:
        files: the run's directory.
        registered: what to say of the registry when a signal ended the run.

    Raises:
        RunStopped: they left because they were asked to.
        UserError: they wrote nothing.
    """
    outcome = files.read_outcome()
    names = [asked(files.stop()), outcome["stopped_by"] if outcome else ""]
    for name in names:
        if name in signal.Signals.__members__:
            raise RunStopped(
                what_is_left(files, f"stopped by {name}", registered), 128 + signal.Signals[name]
            )
    if outcome is None:
        raise UserError(f"the workers ended without an outcome; see {files.log(0).parent}")
    return outcome


def what_is_left(files: RunFiles, how: str, registered: str) -> str:
    """A sentence on what a run that ended early has saved."""
    saved = latest(files.checkpoints)
    if saved is None:
        return f"{how} before anything was saved; {registered}, start the run again"
    return f"{how}; saved in {saved}, {registered}; --resume goes on from there"


def with_absolute_data(recipe: Recipe) -> Recipe:
    """The recipe with local paths of what it reads that mean the same in every process."""
    recipe, path = with_absolute_sources(with_absolute_paths(recipe)), recipe.data.path
    if "://" in path:
        return recipe
    data = recipe.data.model_copy(update={"path": str(Path(path).absolute())})
    return recipe.model_copy(update={"data": data})


def open_tracker(recipe: Recipe, files: RunFiles) -> MlflowTracker:
    """The run's record in MLflow: the one it has already when it is resumed, else a new one."""
    known = files.facts().get("run")
    if known:
        tracker = MlflowTracker.resume(recipe.tracking, known)
        tracker.send_kept(files.undelivered)
    else:
        tracker = MlflowTracker.start(recipe.tracking, files.directory.name)
    tracker.kept = files.undelivered
    return tracker


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


def resumable(recipe: Recipe, files: RunFiles) -> Recipe:
    """The recipe to go on with, which is the run's from now on."""
    check_resumable(files.read_recipe(), recipe, files.directory)
    files.write_recipe(recipe)
    return recipe
