"""A search from a recipe and a space to a registered model and the recipe that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prismrec.cluster.members import check_members
from prismrec.cluster.runtime import ray_runtime
from prismrec.config import Recipe, UserError, load
from prismrec.config.document import to_toml
from prismrec.config.external import find_modules_in
from prismrec.config.machine import threads_asked, threads_per_process
from prismrec.config.redact import without_password
from prismrec.data.filters import count_rows, row_filter
from prismrec.data.source import DataSource
from prismrec.jobs.progress import console_of_stderr
from prismrec.jobs.publish import publish
from prismrec.jobs.train import check_before_start, with_absolute_data
from prismrec.jobs.tune.files import (
    ENDED,
    SearchFiles,
    State,
    Tell,
    Trial,
    latest_search,
    new_search,
)
from prismrec.jobs.tune.space import (
    Dimension,
    Values,
    check_space,
    draw_trials,
    read_space,
    recipes_of,
)
from prismrec.jobs.tune.trial import run_trial, trial_tracker
from prismrec.tracking.plots import TrialPoints, plot_trials
from prismrec.tracking.run import MlflowTracker, Status
from prismrec.train.process_group import resolve_device
from prismrec.train.quiet import library_output
from prismrec.train.signals import signals_end
from prismrec.train.state import score

_TRIAL_BYTES = 2**20
"""Memory that the process of a trial asks Ray for where it trains nothing itself."""
_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


@dataclass(frozen=True, slots=True)
class Options:
    """How a search is done.

    Args:
        trials: how many.
        at_once: how many of them at the same time; as many as the cluster has cores for if None.
        grace: evaluations that every trial has before it may be stopped.
        reduction: one of so many trials goes on past each rung.
        resume: go on with the recipe's newest search.
        verbose: show what the libraries say.
    """

    trials: int = 16
    at_once: int | None = None
    grace: int = 1
    reduction: int = 3
    resume: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What is searched.

    Args:
        recipe: file of the recipe.
        overrides: changes of it that all trials have.
        space: file of the space.
    """

    recipe: Path
    overrides: tuple[str, ...]
    space: Path


def run_search(asked: Asked, options: Options) -> dict[str, Any]:
    """Train the trials, stop those that fall behind, register the best and write its recipe.

    Args:
        asked: recipe and space.
        options: how the search is done.

    Returns:
        The document of `prismrec tune --json`: `directory`, `metric`, MLflow `run`, `trials`,
        `best` with its `recipe` file and `registered` model, or None, and `tracking`.

    Raises:
        UserError: recipe, space or data are wrong, before a trial starts; or no trial came to its end.
    """
    find_modules_in(str(Path.cwd()))
    recipe = with_absolute_data(load(asked.recipe, asked.overrides))
    space = read_space(asked.space)
    trials, recipes, source = _checked(asked, recipe, space, options)
    begin = latest_search if options.resume else new_search
    search = begin(recipe, space, trials)
    parent = _parent(recipe, search, options)
    search.add_trials(recipes)
    search.try_again()
    with (
        console_of_stderr() as console,
        library_output(search.directory / "log" / "driver.log", verbose=options.verbose),
    ):

        def tell(line: str) -> None:
            console.print(line, markup=False, soft_wrap=True)

        with _closed(parent, search, tell), signals_end():
            with _cache(search.cache):
                _count(recipe, source)
            _train(recipe, search, options, tell)
            document = _ended(recipe, search, parent, tell)
    return document


@contextmanager
def _closed(parent: MlflowTracker, search: SearchFiles, tell: Tell) -> Iterator[None]:
    """End the search's run in MLflow according to how the block ends."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        tell(f"stopped; what trials came to is in {search.directory}, --resume goes on from there")
        raise
    finally:
        parent.close(status)


def _checked(
    asked: Asked, recipe: Recipe, space: tuple[Dimension, ...], options: Options
) -> tuple[list[Values], list[Recipe], DataSource]:
    """Values and recipe of every trial, and the data set, with all that can be wrong looked for."""
    if recipe.data.splits.valid is None:
        raise UserError("data.splits.valid: trials are compared on these rows; name them")
    check_space(space, asked.recipe, asked.overrides, asked.space)
    trials = draw_trials(space, options.trials, recipe.seed)
    recipes = [
        with_absolute_data(each) for each in recipes_of(trials, asked.recipe, asked.overrides)
    ]
    source = check_before_start(recipe)
    for number, each in enumerate(recipes):
        try:
            check_before_start(each)
        except UserError as error:
            raise UserError(f"--space: trial {number}: {error.message}") from None
    return trials, recipes, source


def _parent(recipe: Recipe, search: SearchFiles, options: Options) -> MlflowTracker:
    """The search's run in MLflow, which those of the trials are children of."""
    known = search.facts().get("parent")
    if known:
        section = recipe.tracking.model_copy(update={"uri": search.facts()["uri"]})
        parent = MlflowTracker.resume(section, known)
    else:
        parent = MlflowTracker.start(
            recipe.tracking, search.directory.name, {"prismrec.kind": "tune"}
        )
        search.files.record({"parent": parent.run_id, "uri": parent.uri, "folder": str(Path.cwd())})
    search.files.record({"threads": threads_asked()})
    facts = search.facts()
    space = {f"space.{each['key']}": f"{each['way']} {each['values']}" for each in facts["space"]}
    asked = {"tune.metric": facts["metric"], "tune.trials": options.trials}
    parent.log_parameters(space | asked | {"data.path": recipe.data.path})
    return parent


@contextmanager
def _cache(directory: Path) -> Iterator[None]:
    """Counts of rows are remembered in a directory while the context lasts."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _count(recipe: Recipe, source: DataSource) -> None:
    """Count the rows of every split once, for all trials to read."""
    splits = recipe.data.splits
    for name, conditions in (
        ("train", splits.train),
        ("valid", splits.valid),
        ("test", splits.test),
    ):
        if conditions:
            count_rows(source, row_filter(conditions, source, f"data.splits.{name}"))


def _train(recipe: Recipe, search: SearchFiles, options: Options, tell: Tell) -> None:
    """Have Ray Tune run the trials that have not ended."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial may fail before any
    workers = recipe.workers
    with ray_runtime(workers.address, num_workers=workers.count, verbose=options.verbose):
        if workers.address is not None:
            check_members()
        import ray
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        cores = int(ray.cluster_resources().get("CPU", 1))
        at_once = options.at_once or max(1, cores // workers.count)
        threads = threads_per_process(at_once * workers.count, threads_asked())
        search.files.record({"threads": threads})
        is_gpu = resolve_device(recipe.train.device) == "cuda"
        needs: dict[str, float] = {"CPU": 1, "GPU": int(is_gpu)}
        if (
            workers.count > 1
        ):  # its workers ask for cores themselves, and a trial cannot ask for nothing
            needs = {"memory": _TRIAL_BYTES}
        numbers = list(range(len(search.facts()["trials"])))
        tuner = tune.Tuner(
            tune.with_resources(run_trial, needs),
            param_space={"directory": str(search.directory), "trial": tune.grid_search(numbers)},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=ASHAScheduler(
                    time_attr="evaluation",
                    max_t=10**6,
                    grace_period=options.grace,
                    reduction_factor=options.reduction,
                ),
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(search.directory),
                failure_config=tune.FailureConfig(max_failures=workers.max_failures),
                callbacks=[_watcher(search, tell)],
                verbose=1 if options.verbose else 0,
            ),
        )
        tuner.fit()


def _watcher(search: SearchFiles, tell: Tell) -> Any:
    """What Ray Tune calls when a trial ends; made here because only here Ray may be imported."""
    from ray.tune import Callback

    class Watcher(Callback):
        def __init__(self, search: SearchFiles, tell: Tell) -> None:
            self._search, self._tell = search, tell

        def __getstate__(self) -> dict[str, Any]:
            return {"_search": self._search}  # Ray Tune writes it down, and a terminal cannot be

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **_: Any
        ) -> None:
            self._end(trial.config["trial"], "stopped")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self._end(trial.config["trial"], "failed")

        def _end(self, number: int, state: State) -> None:
            """Put down how a trial ended, and tell it."""
            put_down(self._search, number, state)
            stands = self._search.trials()
            ended = sum(each.state in ENDED for each in stands)
            self._tell(
                f"{ended} of {len(stands)} trials: {_line(stands[number], self._search.facts()['metric'])}"
            )

    return Watcher(search, tell)


def put_down(search: SearchFiles, number: int, state: State) -> None:
    """Put down how a trial ended that could not do so itself.

    Args:
        search: the trial's.
        number: of the trial.
        state: `stopped` or `failed`; why it failed is what it said last, if it could.
    """
    files = search.trial(number)
    known = files.facts()
    if known.get("state") in ENDED:
        return
    lost = (
        f"its process was lost more often than workers.max_failures allows; see {files.directory}"
    )
    error = (known.get("error") or lost) if state == "failed" else ""
    files.record({"state": state, "error": error})
    tracker = trial_tracker(search, files.read_recipe(), number)
    tracker.log_tags({"prismrec.trial_state": state})
    tracker.close(_STATUS[state])


def _line(trial: Trial, metric: str) -> str:
    """A trial in a line."""
    values = ", ".join(f"{key} = {value}" for key, value in trial.values.items())
    found = "" if trial.best is None else f", {metric} {trial.best:.4f} at step {trial.step}"
    return f"trial {trial.number} {trial.state}{found} ({values})"


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The trial with the best value among those that came to their end."""
    ended = [each for each in trials if each.state == "finished" and each.best is not None]
    return max(ended, key=lambda each: score(metric, each.best or 0.0)) if ended else None


def _ended(
    recipe: Recipe, search: SearchFiles, parent: MlflowTracker, tell: Tell
) -> dict[str, Any]:
    """Register the best model, write its recipe, and put table and plot beside them."""
    facts, trials = search.facts(), search.trials()
    metric = facts["metric"]
    table = search.directory / "trials.json"
    table.write_text(json.dumps([each.row() for each in trials], indent=1) + "\n")
    parent.log_file(table)
    keys = [each["key"] for each in facts["space"]]
    points = [
        TrialPoints(key, [(t.values[key], t.best, t.state) for t in trials if t.best is not None])
        for key in keys
    ]
    if any(each.points for each in points):
        parent.log_file(plot_trials(points, metric, search.directory / "trials.png"), "plots")
    best = best_of(trials, metric)
    if best is None:
        failed = next((each for each in trials if each.error), None)
        why = f"; trial {failed.number}: {failed.error}" if failed else ""
        raise UserError(f"no trial came to its end{why}; see {search.directory}")
    files = search.trial(best.number)
    chosen = files.read_recipe()
    search.best.write_text(to_toml(_as_asked(chosen, recipe)))
    parent.log_file(search.best)
    tracker = trial_tracker(search, chosen, best.number)
    outcome = files.read_outcome()
    assert outcome is not None
    published = publish(chosen, files, outcome, tracker)
    tracker.close("FINISHED")
    parent.log_metrics({f"best/{metric}": best.best or 0.0}, best.step or 0)
    parent.log_tags({"prismrec.best_trial": str(best.number), "prismrec.model": published.model})
    tell(f"best: {_line(best, metric)}; {published.model}")
    return {
        "directory": str(search.directory),
        "metric": metric,
        "run": parent.run_id,
        "trials": [each.row() for each in trials],
        "best": {
            **asdict(best),
            "recipe": str(search.best),
            "registered": published.model,
            "test": {k: v for k, v in outcome["metrics"].items() if k.count("/") == 1},
        },
        "tracking": without_password(parent.uri),
    }


def _as_asked(chosen: Recipe, recipe: Recipe) -> Recipe:
    """The best trial's recipe with the tracking server and machines of the one that was searched."""
    return chosen.model_copy(update={"tracking": recipe.tracking, "workers": recipe.workers})
