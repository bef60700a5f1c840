"""The directory of one run: what is in it and where."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.config import Recipe, UserError, dump, from_dict
from prismrec.train.metrics.calibration import CalibrationCurve

MATCHED = "matched.txt"
"""Name of `RunFiles.matched`."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths of one run; every rank sees the same directory.

    Args:
        directory: the run's own directory.
    """

    directory: Path

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.directory / "checkpoints"

    @property
    def events(self) -> Path:
        """What happened, one JSON object per line."""
        return self.directory / "events.jsonl"

    @property
    def held_out(self) -> Path:
        """Raw held-out rows with the trainer's own logits, for the check of the exported model."""
        return self.directory / "held_out.parquet"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.directory / "recipe.json"

    @property
    def plan(self) -> Path:
        """Where the tables are."""
        return self.directory / "plan.json"

    @property
    def matched(self) -> Path:
        """What of the first weights came from another run or from files, as tables to read."""
        return self.directory / MATCHED

    @property
    def skipped(self) -> Path:
        """Row groups and files that could not be decoded, if there are any."""
        return self.directory / "skipped.json"

    @property
    def nonfinite(self) -> Path:
        """Steps whose loss was not finite and whose rows were passed over, if there are any."""
        return self.directory / "nonfinite.json"

    @property
    def hang(self) -> Path:
        """Why the workers were ended that hung last, if they were."""
        return self.directory / "hang.txt"

    def write_hang(self, message: str) -> None:
        """Put down why workers that hang are ended."""
        write_whole(self.hang, message)

    def read_hang(self) -> str:
        """Why the last workers were ended, if they hung, or an empty text."""
        return self.hang.read_text() if self.hang.exists() else ""

    def sign(self, rank: int) -> Path:
        """A rank's last sign of life."""
        return self.directory / "alive" / f"rank-{rank:05d}.json"

    @property
    def undelivered(self) -> Path:
        """Metrics that the tracking server did not take, if it was away at the end."""
        return self.directory / "undelivered.jsonl"

    @property
    def bundle(self) -> Path:
        """The inference copy."""
        return self.directory / "model"

    @property
    def outcome(self) -> Path:
        """What the finished training came to."""
        return self.directory / "outcome.json"

    def stop(self, attempt: str = "") -> Path:
        """A request to save and leave: to the run, or to one start of its workers only."""
        return self.directory / (f"stop-{attempt}" if attempt else "stop")

    def begin(self) -> None:
        """Forget how an earlier start of the run ended, and what it exported."""
        for path in (
            self.outcome,
            self.hang,
            *self.directory.glob("stop*"),
            *self.directory.glob("error-*"),
        ):
            path.unlink(missing_ok=True)
        if self.bundle.exists():
            shutil.rmtree(self.bundle)

    def write_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Put down what the training came to; whoever sees the file sees all of it."""
        write_whole(self.outcome, json.dumps(dict(outcome)))

    def read_outcome(self) -> dict[str, Any] | None:
        """What the training came to, None before its end."""
        return json.loads(self.outcome.read_text()) if self.outcome.exists() else None

    def write_plan(self, plan: list[dict[str, Any]]) -> None:
        """Put down where the tables are."""
        self.plan.write_text(json.dumps(plan, indent=1) + "\n")

    @property
    def gradients(self) -> Path:
        """How hard the objective pushed the logits, by step."""
        return self.directory / "gradients.csv"

    @property
    def curves(self) -> Path:
        """Calibration of each task on the test rows."""
        return self.directory / "calibration.json"

    def write_curves(self, curves: Mapping[str, CalibrationCurve]) -> None:
        """Put down the calibration of each task."""
        tables = {
            task: {
                "weight": curve.weight.tolist(),
                "predicted": curve.predicted.tolist(),
                "observed": curve.observed.tolist(),
            }
            for task, curve in curves.items()
        }
        self.curves.write_text(json.dumps(tables) + "\n")

    def write_error(self, attempt: str, error: UserError) -> None:
        """Put down a mistake of the user that ends the run, whichever rank met it first.

        On a full disk it goes where temporary files are, for a driver on the same machine.
        """
        if self.read_error(attempt):
            return
        try:
            write_whole(self._error(attempt), error.message)
        except OSError:
            with contextlib.suppress(OSError), self._spare(attempt).open("x") as file:
                file.write(error.message)

    def read_error(self, attempt: str) -> str:
        """The mistake that ended this start of the run, or an empty text."""
        for path in (self._error(attempt), self._spare(attempt)):
            if path.exists():
                return path.read_text()
        return ""

    def _spare(self, attempt: str) -> Path:
        return Path(tempfile.gettempdir(), f"prismrec-{self._error(attempt).name}")

    def _error(self, attempt: str) -> Path:
        return self.directory / f"error-{attempt}.txt"

    def log(self, rank: int) -> Path:
        """What the libraries had to say on one rank."""
        return self.directory / "log" / f"rank-{rank:05d}.log"

    def facts(self) -> dict[str, Any]:
        """What was recorded about the run as a whole, such as its MLflow run."""
        path = self.directory / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def record(self, facts: Mapping[str, Any]) -> None:
        """Add to those facts."""
        write_whole(self.directory / "run.json", json.dumps(self.facts() | dict(facts), indent=1))

    def write_recipe(self, recipe: Recipe) -> None:
        """Put down the resolved recipe."""
        self.recipe.write_text(json.dumps(dump(recipe), indent=1) + "\n")

    def read_recipe(self) -> Recipe:
        """The recipe the run was started with.

        Raises:
            UserError: the directory is not a run's.
        """
        if not self.recipe.exists():
            raise UserError(f"{self.directory}: not a run directory (it has no {self.recipe.name})")
        return from_dict(json.loads(self.recipe.read_text()), source=str(self.recipe))


def write_whole(path: Path, text: str) -> None:
    """Write a file that nobody ever sees half of."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text)
    scratch.replace(path)


def append_line(path: Path, document: Mapping[str, Any]) -> None:
    """Append a JSON object to a record, as a line of its own also where the last one is torn.

    Raises:
        UserError: the file cannot be written, as on a full disk.
    """
    line = json.dumps(document).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; free space, and --resume goes on "
            "from the last checkpoint"
        ) from error


def parse_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of a record; a line that is torn, as a full disk or a kill tears it, is none."""
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        yield document


def new_run(recipe: Recipe) -> RunFiles:
    """Make the directory of a new run under `recipe.out` and put the recipe into it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parent = Path(recipe.out).absolute()
    for attempt in range(1000):
        suffix = f"-{attempt}" if attempt else ""
        directory = parent / f"{recipe.name}-{stamp}{suffix}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"out: cannot make {directory}: {error.strerror}") from None
        files = RunFiles(directory)
        files.write_recipe(recipe)
        (directory / "log").mkdir()
        return files
    raise UserError(f"out: {parent} already holds a thousand runs of this second")


def latest_run(recipe: Recipe) -> RunFiles:
    """The newest run directory of a recipe.

    Raises:
        UserError: there is none to resume.
    """
    parent = Path(recipe.out).absolute()
    stamped = re.compile(re.escape(recipe.name) + r"-\d{8}-\d{6}(-\d+)?")
    found = sorted(
        (
            path
            for path in parent.glob(f"{recipe.name}-*")
            if stamped.fullmatch(path.name) and (path / "recipe.json").exists()
        ),
        key=lambda path: path.stat().st_mtime,
    )
    if not found:
        raise UserError(f"--resume: no run of '{recipe.name}' under {parent}; leave --resume out")
    return RunFiles(found[-1])
