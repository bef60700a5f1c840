"""A run over a stream, from its first window to the last version in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.config import Recipe, UserError
from prismrec.config.external import find_modules_in
from prismrec.config.redact import without_password
from prismrec.data.arrivals import Arrivals
from prismrec.jobs.periods import Office, Publisher, draw_windows
from prismrec.jobs.run import Options, begun, outcome_of, run_ended
from prismrec.jobs.train import check_machines, with_absolute_data
from prismrec.train.initial import check_start
from prismrec.train.periods import PeriodFiles
from prismrec.train.run_files import RunFiles

_REGISTERED = "versions registered so far stay"


@dataclass(frozen=True, slots=True)
class OnlineResult:
    """A finished run over a stream.

    Args:
        files: the run's directory.
        run_id: the MLflow run.
        outcome: what the workers came to, see `OnlineOutcome`.
        periods: what became of every version asked for.
        tracking: URI of the tracking server, without a password.
    """

    files: RunFiles
    run_id: str
    outcome: dict[str, Any]
    periods: list[dict[str, Any]]
    tracking: str

    def to_json(self) -> dict[str, Any]:
        """The document that `online --json` prints."""
        kept = ("windows", "rows", "steps", "late_files", "skipped_rows", "examples_per_second")
        return {
            **{name: self.outcome[name] for name in kept},
            "last_window": {k: v for k, v in self.outcome["metrics"].items() if k.count("/") == 1},
            "periods": self.periods,
            "run": self.run_id,
            "directory": str(self.files.directory),
            "tracking": self.tracking,
        }


def run_online(recipe: Recipe, options: Options) -> OnlineResult:
    """Train on a stream and publish versions of the model, until the stream or the recipe ends.

    SIGTERM and Ctrl-C save a checkpoint and leave; a second one leaves at once.

    Raises:
        UserError: the recipe does not fit a stream, its schema or the device (before any process
            starts), or a worker met bad data.
        RunStopped: a signal ended the run.
    """
    find_modules_in(str(Path.cwd()))
    recipe = with_absolute_data(recipe)
    arrivals = _checked(recipe)
    if not options.resume:
        check_start(recipe, arrivals.source({}))
    with begun(recipe, options, {}) as run:
        office = Office(run.recipe, PeriodFiles(run.files.directory), run.tracker, run.console)
        with run_ended(run.tracker, run.files, _REGISTERED):
            with Publisher(office):
                run.work(online=True)
            draw_windows(office)
            outcome = outcome_of(run.files, _REGISTERED)
    periods = [each.published() for each in office.files.periods() if each.is_published]
    uri = without_password(run.tracker.uri)
    return OnlineResult(run.files, run.tracker.run_id, outcome, periods, uri)


def _checked(recipe: Recipe) -> Arrivals:
    """The stream, if recipe and device fit it.

    Raises:
        UserError: what does not.
    """
    problems = _problems(recipe)
    if problems:
        raise UserError("; ".join(problems))
    assert recipe.features.time is not None
    arrivals = Arrivals(recipe.data.path, recipe.features.time)
    check_machines(recipe, arrivals.schema)
    return arrivals


def _problems(recipe: Recipe) -> list[str]:
    """Sections that a stream has no use for: they need to know where the rows end."""
    if recipe.online is None:
        return ["online: `prismrec online` needs a section [online] with the length of a window"]
    schedule = recipe.train.schedule
    wrong = {
        "calibration": (recipe.calibration is not None, "is fitted when training ends"),
        "train.phases": (recipe.train.phases is not None, "shares out the steps of a run"),
        "train.epochs": (recipe.train.epochs > 1, "reads the rows again"),
        "train.steps": (recipe.train.steps is not None, "ends a run over a data set"),
        "train.on_nonfinite": (
            recipe.train.on_nonfinite == "rollback",
            "'rollback' goes back over windows, whose files may be others by then",
        ),
        "data.on_bad_file": (
            recipe.data.on_bad_file != "fail",
            "counts what it passes over in all rows",
        ),
        "evaluate.frequency_of": (
            recipe.evaluate.frequency_of is not None,
            "counts all training rows at the start",
        ),
        "train.schedule.decay": (
            schedule.decay == "plateau"
            or (schedule.decay != "none" and schedule.decay_steps is None),
            "needs decay_steps, and 'plateau' needs fixed validation rows",
        ),
    }
    problems = [
        f"{key}: {why}, and a stream has no end; leave it out"
        for key, (is_set, why) in wrong.items()
        if is_set
    ]
    problems += [
        f"tasks[{index}].propensity: estimator = 'fitted' reads all training rows at the start, and a "
        "stream has no end; choose another"
        for index, task in enumerate(recipe.tasks)
        if task.propensity is not None
        and task.propensity.estimator == "fitted"
        and not task.propensity.expected
    ]
    return problems
