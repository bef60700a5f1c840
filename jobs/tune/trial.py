"""What one trial does, in a process that Ray Tune starts."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import Any

from prismrec.checkpoint.directory import remove_unfinished
from prismrec.config import Recipe, UserError, flatten
from prismrec.jobs.launch import train_on_ray
from prismrec.jobs.order import Order
from prismrec.jobs.tune.files import ENDED, Evaluations, SearchFiles
from prismrec.jobs.worker import work
from prismrec.tracking.run import MlflowTracker
from prismrec.train.run_files import RunFiles
from prismrec.train.state import score

_POLL_S = 0.2


def run_trial(config: dict[str, Any]) -> None:
    """Train as one trial of a search, and report every evaluation.

    A trial that was ended by a failure goes on from its last checkpoint. One that has ended already
    reports again what it found, so that a search that is resumed compares with it.

    Args:
        config: `directory` of the search and number of the `trial`.
    """
    search = SearchFiles(Path(config["directory"]))
    os.environ["XDG_CACHE_HOME"] = str(search.cache)
    facts, files = search.facts(), search.trial(config["trial"])
    reports = _Reports(files.events, facts["metric"])
    reports.send()
    if files.facts().get("state") in ENDED:
        return
    remove_unfinished(files.checkpoints)
    files.begin()
    recipe = files.read_recipe()
    tracker = trial_tracker(search, recipe, config["trial"])
    files.record({"run": tracker.run_id, "error": ""})  # that of an earlier try is over
    tracker.log_parameters(flatten(recipe))
    order: Order = {
        "directory": str(files.directory),
        "attempt": secrets.token_hex(4),
        "verbose": False,
        "folder": facts["folder"],
        "threads": facts["threads"],
        "run": tracker.run_id,
    }
    training = _Training(recipe, files, order)
    while not training.is_over.wait(_POLL_S):
        reports.send()
    reports.send()
    if isinstance(training.error, UserError):  # it would be met again: no second try
        files.record({"state": "failed", "error": training.error.message, "is_mistake": True})
        tracker.close("FAILED")
        return
    if training.error is not None:
        files.record({"error": _said(training.error, files)})  # for when no try is left
        tracker.close("FAILED")
        raise training.error
    files.record({"state": "finished"})
    tracker.close("FINISHED")


def _said(error: Exception, files: RunFiles) -> str:
    """An error in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f": {lines[0][:300]}" if lines else ""
    return f"{type(error).__name__}{text}; see {files.directory}"


def trial_tracker(search: SearchFiles, recipe: Recipe, number: int) -> MlflowTracker:
    """The MLflow run of a trial, a child of the search's: a new one, or the one it has already."""
    facts, known = search.facts(), search.trial(number).facts().get("run")
    section = recipe.tracking.model_copy(update={"uri": facts["uri"]})
    if known:
        return MlflowTracker.resume(section, known)
    tags = {"mlflow.parentRunId": facts["parent"], "prismrec.trial": str(number)}
    return MlflowTracker.start(section, f"trial-{number:04d}", tags)


class _Reports:
    """Tells Ray Tune of the evaluations of a run.

    Args:
        events: the run's events.
        metric: such as `click/auc`.
    """

    def __init__(self, events: Path, metric: str) -> None:
        self._evaluations, self._metric, self._count = Evaluations(events, metric), metric, 0

    def send(self) -> None:
        """Report what is new; Ray Tune may end the process here."""
        from ray import tune

        for step, value in self._evaluations.new():
            self._count += 1
            tune.report(
                {"score": score(self._metric, value), "evaluation": self._count, "step": step}
            )


class _Training:
    """Training on a thread of its own: in this process, or on workers under Ray Train.

    Args:
        recipe: the trial's.
        files: the trial's.
        order: what every worker is told.
    """

    def __init__(self, recipe: Recipe, files: RunFiles, order: Order) -> None:
        self.is_over = threading.Event()
        self.error: Exception | None = None
        self._given = recipe, files, order
        threading.Thread(target=self._train, name="prismrec-trial", daemon=True).start()

    def _train(self) -> None:
        recipe, files, order = self._given
        try:
            if recipe.workers.count == 1:
                work(order)
            else:
                train_on_ray(recipe, files, order, stays=True)
        except Exception as error:  # noqa: BLE001 - raised where the trial is attended
            self.error = error
        finally:
            self.is_over.set()
