"""The program as a user runs it: a small world, a recipe, processes with a deadline, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from prismrec.data.world import write_world

PROGRAM = str(Path(sys.executable).with_name("prismrec"))
DEADLINE_S = 240
ROWS, DAYS = 8_000, 6

RECIPE = """
name = "small"
seed = 3
out = "{here}/runs"
tasks = [{{ name = "like", label = "like" }}]
[data]
path = "{data}"
global_batch_size = 64
lanes = 4
[data.splits]
train = ["day <= 3"]
test = ["day >= 4"]
[features]
sparse = ["user_id", "item_id", "category"]
dense = ["x1", "x2"]
[embedding]
num_sets = 2
dim = 4
[model]
name = "dcnv2"
hidden = [8]
[train]
precision = "fp32"
epochs = 2
log_every = 5
[checkpoint]
every_steps = 3
[evaluate]
bootstrap = 0
[tracking]
uri = "sqlite:///{here}/mlflow.db"
[workers]
count = 2
"""


@dataclass(frozen=True)
class Home:
    """A folder with a recipe; runs and the MLflow file go into it.

    Args:
        directory: the folder.
        data: the data set that the recipe reads.
    """

    directory: Path
    data: Path

    @property
    def recipe(self) -> Path:
        """The recipe file."""
        return self.directory / "small.toml"

    def runs(self) -> list[Path]:
        """Run directories, oldest first."""
        return sorted(self.directory.glob("runs/small-*"), key=lambda path: path.stat().st_ctime)

    def run(self) -> Path:
        """The only run's directory, awaited."""
        await_(lambda: bool(self.runs()), "a run directory")
        (found,) = self.runs()
        return found


def world(directory: Path) -> Path:
    """A data set of a few thousand rows."""
    write_world(directory / "data", ROWS, DAYS, 1)
    return directory / "data"


def home(directory: Path, data: Path) -> Home:
    """A folder with the recipe of a run on `data`."""
    directory.mkdir(parents=True, exist_ok=True)
    made = Home(directory, data)
    made.recipe.write_text(RECIPE.format(here=directory, data=data))
    return made


def environment() -> dict[str, str]:
    """What a user's shell would have, with one thread for every process."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}


def start(at: Home, *arguments: str) -> subprocess.Popen[str]:
    """`prismrec train` on the recipe, in a process group of its own."""
    return subprocess.Popen(
        [PROGRAM, "train", str(at.recipe), *arguments],
        cwd=at.directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; killed with all it started if too late."""
    below = psutil.Process(process.pid).children(recursive=True)
    try:
        out, err = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        below += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in below:
            if each.is_running():
                each.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {deadline_s:g} s; it said: {out}{err}") from None
    return process.returncode, out, err


def train(at: Home, *arguments: str) -> tuple[int, str, str]:
    """Run `prismrec train` to its end."""
    return finish(start(at, *arguments))


def await_(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.05)


def saved_steps(run: Path) -> list[int]:
    """Steps of the whole checkpoints of a run."""
    return sorted(int(path.parent.name.split("-")[1]) for path in run.glob("checkpoints/step-*/manifest.json")
                  if ".tmp" not in path.parent.name)  # fmt: skip


def await_step(run: Path, step: int) -> None:
    """Wait until a step is saved."""
    await_(lambda: max(saved_steps(run), default=0) >= step, f"checkpoint of step {step}")


def ray_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes that a driver's embedded Ray has started, by age."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            if each.cmdline()[0].startswith("ray::RayTrainWorker"):
                found.append(each)
        except (psutil.Error, IndexError):
            continue
    return sorted(found, key=lambda each: each.create_time())


def manifest(run: Path) -> dict[str, Any]:
    """The manifest of the newest checkpoint."""
    path = max(run.glob("checkpoints/step-*/manifest.json"))
    return dict(json.loads(path.read_text()))


def signal_number(name: str) -> int:
    """Number of a signal."""
    return int(signal.Signals[name])


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes that a driver without Ray has started."""
    found = psutil.Process(process.pid).children()
    return [each for each in found if "spawn_main" in " ".join(each.cmdline())]


def is_ours(err: str) -> None:
    """Where nobody watches, a run says one line per evaluation and nothing else."""
    (line,) = err.splitlines()
    assert line.startswith("step ")
    assert " test: like auc " in line
    assert line.isprintable()
