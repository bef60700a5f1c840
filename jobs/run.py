"""What every run has, of a data set or of a stream: a directory, a record in MLflow, workers, and an end."""

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
from prismrec.config.machine import threads_asked
from prismrec.jobs.launch import run_locally, run_on_ray
from prismrec.jobs.order import Order
from prismrec.jobs.progress import console_of_stderr, shown_progress
from prismrec.jobs.resume import check_resumable
from prismrec.tracking.run import MlflowTracker
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles, latest_run, new_run
from prismrec.train.signals import asked, signals_ask, signals_end

NOTHING = "nothing is registered"
"""Of a run that registers one model, at its end."""


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


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has begun.

    Args:
        recipe: the recipe, checked against the run's where it is resumed.
        files: the run's directory.
        tracker: its record in MLflow.
        options: how it is started.
        console: where progress is shown.
    """

    recipe: Recipe
    files: RunFiles
    tracker: MlflowTracker
    options: Options
    console: Console

    def work(self, *, online: bool) -> None:
        """Run the workers to their end, or until a signal asks them to leave.

        Args:
            online: whether the data are a stream.

        Raises:
            UserError: what a worker said was wrong, or that the workers kept failing.
        """
        order: Order = {
            "directory": str(self.files.directory),
            "attempt": secrets.token_hex(4),
            "verbose": self.options.verbose,
            "folder": str(Path.cwd()),
            "threads": threads_asked(),
            "run": self.tracker.run_id,
            "online": online,
        }
        with (
            shown_progress(self.files.events, self.console, self.recipe.task_names),
            signals_ask(self.files.stop()),
        ):
            (run_on_ray if self.options.use_ray else run_locally)(self.recipe, self.files, order)


@contextmanager
def begun(recipe: Recipe, options: Options, facts: dict[str, Any]) -> Iterator[Run]:
    """A new run, or the recipe's newest one again; what libraries say goes to its log meanwhile.

    Args:
        recipe: with absolute paths.
        options: how it is started.
        facts: parameters for MLflow besides those of the recipe.

    Raises:
        UserError: there is no run to resume, or the recipe is not that of the run.
    """
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
        tracker.log_parameters(flatten(recipe) | facts)
        yield Run(recipe, files, tracker, options, console)


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


def resumable(recipe: Recipe, files: RunFiles) -> Recipe:
    """The recipe to go on with, which is the run's from now on."""
    check_resumable(files.read_recipe(), recipe, files.directory)
    files.write_recipe(recipe)
    return recipe
