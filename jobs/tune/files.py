"""The directory of a search: what was drawn, and the run of every trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prismrec.config import Recipe, UserError
from prismrec.jobs.tune.space import Dimension, Values
from prismrec.train.run_files import RunFiles, latest_run, new_run
from prismrec.train.state import score

State = Literal["waiting", "running", "finished", "stopped", "failed"]
"""`finished`: trained to its end. `stopped`: early, because others were better. `failed`: by a mistake, or
by more failures than `workers.max_failures`."""
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as it stands.

    Args:
        number: from 0.
        values: of the space's keys.
        state: how far it is.
        best: the best value of the metric so far, None before the first evaluation.
        step: of that evaluation.
        evaluations: how many there were.
        run: its MLflow run, or "".
        error: why it failed, or "".
    """

    number: int
    values: Values
    state: State
    best: float | None
    step: int | None
    evaluations: int
    run: str
    error: str

    def row(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SearchFiles:
    """Paths and facts of one search; every process of it sees the same directory.

    Args:
        directory: the search's own directory.
    """

    directory: Path

    @property
    def files(self) -> RunFiles:
        """The directory as that of a run, which has the recipe that trials vary."""
        return RunFiles(self.directory)

    @property
    def cache(self) -> Path:
        """Counts of filtered rows, made once for all trials."""
        return self.directory / "cache"

    @property
    def best(self) -> Path:
        """The recipe of the best trial."""
        return self.directory / "best.toml"

    def trial(self, number: int) -> RunFiles:
        """The run of a trial."""
        return RunFiles(self.directory / f"trial-{number:04d}")

    def facts(self) -> dict[str, Any]:
        """`space`, `trials`, `metric`, `parent`, `uri` and `threads` of the search."""
        return self.files.facts()

    def add_trials(self, recipes: list[Recipe]) -> None:
        """Make the directory of every trial that has none."""
        for number, recipe in enumerate(recipes):
            files = self.trial(number)
            if not files.recipe.exists():
                (files.directory / "log").mkdir(parents=True, exist_ok=True)
                files.write_recipe(recipe)

    def try_again(self) -> None:
        """Let trials go on that failed by no mistake of their values, as where memory was short."""
        for number in range(len(self.facts()["trials"])):
            files = self.trial(number)
            known = files.facts()
            if known.get("state") == "failed" and not known.get("is_mistake"):
                files.record({"state": None, "error": ""})

    def trials(self) -> list[Trial]:
        """All trials as they stand."""
        facts = self.facts()
        return [
            self._stands(number, values, facts["metric"])
            for number, values in enumerate(facts["trials"])
        ]

    def _stands(self, number: int, values: Values, metric: str) -> Trial:
        files = self.trial(number)
        known, evaluations = files.facts(), Evaluations(files.events, metric)
        found = list(evaluations.new())
        best = max(found, key=lambda each: score(metric, each[1])) if found else None
        state: State = known.get("state") or ("running" if "run" in known else "waiting")
        return Trial(
            number,
            values,
            state,
            None if best is None else best[1],
            None if best is None else best[0],
            len(found),
            known.get("run", ""),
            known.get("error", ""),
        )


class Evaluations:
    """The evaluations of a run, read from its events as they are written.

    A run that failed and went on from a checkpoint evaluates some steps again; they count once.

    Args:
        events: the run's events.
        metric: such as `click/auc`.
    """

    def __init__(self, events: Path, metric: str) -> None:
        self._events, self._name = events, f"valid/{metric}"
        self._position, self._step = 0, -1

    def new(self) -> list[tuple[int, float]]:
        """Step and value of the evaluations that were written since the last call."""
        if not self._events.exists():
            return []
        found = []
        with self._events.open("rb") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith(b"\n"):
                self._position = file.tell()
                event = _event(line)
                value = event.get("values", {}).get(self._name)
                if (
                    event.get("event") == "metrics"
                    and value is not None
                    and event["step"] > self._step
                ):
                    self._step = event["step"]
                    found.append((self._step, float(value)))
        return found


def _event(line: bytes) -> dict[str, Any]:
    """An event; an empty one where a process was killed while it wrote the line."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def new_search(recipe: Recipe, space: tuple[Dimension, ...], trials: list[Values]) -> SearchFiles:
    """Make the directory of a new search under `recipe.out`."""
    search = SearchFiles(new_run(_as_search(recipe)).directory)
    search.files.record(
        {
            "space": [asdict(each) for each in space],
            "trials": trials,
            "metric": recipe.best_metric(),
        }
    )
    search.cache.mkdir()
    return search


def latest_search(
    recipe: Recipe, space: tuple[Dimension, ...], trials: list[Values]
) -> SearchFiles:
    """The newest search over a recipe, to go on with.

    Raises:
        UserError: there is none, or it was of another recipe, space or number of trials.
    """
    search = SearchFiles(latest_run(_as_search(recipe)).directory)
    facts = search.facts()
    stored = json.loads(json.dumps([asdict(each) for each in space]))
    differs = [
        name
        for name, is_same in (
            ("the recipe", search.files.read_recipe() == _as_search(recipe)),
            ("--space", facts.get("space") == stored),
            ("--trials", len(facts.get("trials", [])) == len(trials)),
        )
        if not is_same
    ]
    if differs:
        raise UserError(
            f"--resume: {' and '.join(differs)} differ from those of the search in "
            f"{search.directory}; resume with the same or start a new search"
        )
    return search


def _as_search(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"name": f"{recipe.name}-tune"})


Tell = Callable[[str], None]
"""Takes a line for the person at the terminal."""
