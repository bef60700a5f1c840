"""A long run, watched from outside: do memory, open files and threads of its processes stay what they are?

    python -m benchmarks.soak --out benchmarks/results/soak.md

It starts `prismrec train` with two plain processes on a small world, with an evaluation and a checkpoint
every 500 steps and MLflow in an SQLite file, and looks at the process that was started and at both workers a
few times a second. What is judged is the second half of the run: a line is fitted through the resident memory,
whose slope must stay under 1 MiB in 1,000 steps, and open files and threads must not grow. Of these the fewest
that were seen count: what an evaluation or a checkpoint opens for a moment is not there at every look, what is
never closed is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.machine import machine, sentence
from benchmarks.recovery import end
from prismrec.data.world import write_world
from tests.ray import commands

MIB = 2**20
MOST_GROWTH_MIB = 1.0
"""Of resident memory in 1,000 steps."""
_PAUSE_S = 0.4
_PROCESSES = {"driver", "rank 0", "rank 1"}
CHANGES = (
    'data.splits={train=["day <= 4"], valid=["day == 5"]}',
    "data.global_batch_size=256",
    "embedding.dim=8",
    "model.hidden=[16]",
    "train.epochs=1000000",
    "train.log_every=100",
)
"""Of the small recipe of the tests."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a process.

    Args:
        step: newest step that was saved then.
        memory: resident bytes.
        files: open file descriptors.
        threads: threads.
    """

    step: int
    memory: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What the second half of a run did to a process.

    Args:
        start_mib: resident memory at the half, on the fitted line.
        end_mib: the same at the end.
        per_1000_mib: growth of resident memory in 1,000 steps.
        files: fewest open files of the third and of the fourth quarter.
        threads: the same of threads.
    """

    start_mib: float
    end_mib: float
    per_1000_mib: float
    files: tuple[int, int]
    threads: tuple[int, int]

    @property
    def holds(self) -> bool:
        """Whether nothing grows."""
        still = self.files[1] <= self.files[0] and self.threads[1] <= self.threads[0]
        return still and self.per_1000_mib < MOST_GROWTH_MIB


def growth(looks: Sequence[Look]) -> Growth:
    """What the second half of the steps did.

    Each step that was saved counts once, with the median of the looks at it: a look may meet
    a checkpoint that is being written, whose copy is in memory for a moment.
    """
    last = max(look.step for look in looks)
    steps = sorted({look.step for look in looks if look.step >= last / 2})
    at = {step: [look for look in looks if look.step == step] for step in steps}
    memory = [statistics.median(look.memory for look in at[step]) / MIB for step in steps]
    slope, offset = np.polyfit(steps, memory, 1)
    late = 0.75 * last
    halves = [
        [look for step in steps for look in at[step] if (step >= late) == is_late]
        for is_late in (False, True)
    ]
    files = [min(look.files for look in half) for half in halves]
    threads = [min(look.threads for look in half) for half in halves]
    return Growth(
        float(offset + slope * steps[0]),
        float(offset + slope * steps[-1]),
        float(1000 * slope),
        (files[0], files[1]),
        (threads[0], threads[1]),
    )


def soak(directory: Path, steps: int, every: int) -> dict[str, list[Look]]:
    """Run and look; the looks by process: `driver`, `rank 0`, `rank 1`.

    Args:
        directory: an empty one for data, runs and MLflow.
        steps: of the run.
        every: steps between evaluations, and between checkpoints.

    Raises:
        RuntimeError: the run failed, or a process of it was never looked at.
    """
    write_world(directory / "data", 40_000, 7, 1)
    at = commands.home(directory, directory / "data")
    lengths = (
        f"train.steps={steps}",
        f"checkpoint.every_steps={every}",
        f"evaluate.every_steps={every}",
    )
    with (directory / "out.txt").open("w") as said:
        run = subprocess.Popen(
            [commands.PROGRAM, "train", str(at.recipe), "--no-ray", *CHANGES, *lengths],
            cwd=directory,
            env=commands.environment(),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        looks: dict[str, list[Look]] = {}
        try:
            while run.poll() is None:
                step = max(map(_saved, at.runs()), default=0)
                if 0 < step < steps:  # afterwards the model is exported and registered
                    for name, look in _looks(run.pid, step):
                        looks.setdefault(name, []).append(look)
                time.sleep(_PAUSE_S)
        finally:
            end(run)
    if run.returncode:
        raise RuntimeError((directory / "out.txt").read_text()[-2000:])
    if set(looks) != _PROCESSES:
        raise RuntimeError(
            f"looked at {sorted(looks) or 'no process'}, not at {sorted(_PROCESSES)}; try more steps"
        )
    return looks


def _saved(run: Path) -> int:
    """The newest step whose checkpoint is whole."""
    return max(commands.saved_steps(run), default=0)


def _looks(pid: int, step: int) -> Iterator[tuple[str, Look]]:
    """A look at the process that was started and at its workers."""
    try:
        driver = psutil.Process(pid)
        workers = [p for p in driver.children() if "spawn_main" in " ".join(p.cmdline())]
        names = ["driver", *(f"rank {rank}" for rank in range(len(workers)))]
        for name, process in zip(names, [driver, *workers], strict=True):
            with process.oneshot():
                memory = process.memory_info().rss
                yield name, Look(step, memory, process.num_fds(), process.num_threads())
    except psutil.Error:
        return


def page(found: Mapping[str, Growth], steps: int, every: int, minutes: float) -> str:
    """The result as Markdown."""
    lines = [
        "# A long run",
        "",
        f"`python -m benchmarks.soak --steps {steps} --every {every} --out benchmarks/results/soak.md`:",
        f"two plain processes, {steps:,} steps of 256 rows, evaluation and checkpoint every {every} steps,",
        f"MLflow in an SQLite file; {minutes:.0f} minutes, at low priority beside other work. The second half",
        "of the run, with the fewest open files and threads of its two parts:",
        "",
        "| process | resident MiB, half | end | growth in 1,000 steps | open files | threads |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in found.items():
        files = " and ".join(str(n) for n in each.files)
        threads = " and ".join(str(n) for n in each.threads)
        memory = f"{each.start_mib:.1f} | {each.end_mib:.1f} | {each.per_1000_mib:+.2f} MiB"
        lines.append(f"| {name} | {memory} | {files} | {threads} |")
    verdict = "holds" if all(each.holds for each in found.values()) else "does not hold"
    lines += [
        "",
        f"That memory grows by less than {MOST_GROWTH_MIB:g} MiB in 1,000 steps, and files and threads not",
        f"at all, {verdict}.",
        "Memory is the slope of a line through the medians between checkpoints.",
        "",
        sentence(machine()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print and write the page; exit code 1 where something grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    parser.add_argument("--json", type=Path, help="every look, as JSON")
    asked = parser.parse_args()
    began = time.monotonic()
    with TemporaryDirectory() as directory:
        looks = soak(Path(directory), asked.steps, asked.every)
    found = {name: growth(each) for name, each in looks.items()}
    text = page(found, asked.steps, asked.every, (time.monotonic() - began) / 60)
    print(text)
    if asked.json is not None:
        rows = {
            name: [[x.step, x.memory, x.files, x.threads] for x in each]
            for name, each in looks.items()
        }
        asked.json.write_text(json.dumps(rows))
    if asked.out is not None:
        asked.out.write_text(text)
    sys.exit(0 if all(each.holds for each in found.values()) else 1)


if __name__ == "__main__":
    main()
