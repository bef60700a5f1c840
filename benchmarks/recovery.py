"""How long a run stands still after each kind of kill, and how many steps it does twice.

    python -m benchmarks.recovery --out benchmarks/results/recovery.md
    python -m benchmarks.recovery --case "worker killed under Ray"

Each case trains a small world with two workers, a checkpoint every 20 steps and a record of every step,
disturbs the run once in its first epoch, and reads from the record when the workers were there again and when
the run was past the newest step that it had had. Times are of this machine; most of them are the start of
processes.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.machine import machine, sentence
from benchmarks.recovery_record import DEADLINE_S, Record
from prismrec.data.world import write_world
from tests.ray import commands
from tests.ray.commands import Home

CHANGES = (
    "data.global_batch_size=64",
    "train.epochs=30",
    "train.log_every=1",
    "train.hang_timeout_s=10",
    "checkpoint.every_steps=20",
)
"""Of the small recipe of the tests."""

Disturb = Callable[[psutil.Process], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to disturb a run.

    Args:
        name: in words.
        options: of `prismrec train`.
        disturb: does it, given the process that was started.
        resumes: whether somebody has to start the run again, which is done at once.
    """

    name: str
    options: tuple[str, ...]
    disturb: Disturb
    resumes: bool = False


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a disturbance cost.

    Args:
        back_s: seconds until the workers were there again.
        past_s: seconds until a step was done that had not been done before.
        steps_twice: steps that were done again.
    """

    back_s: float
    past_s: float
    steps_twice: int


def workers(run: psutil.Process) -> list[psutil.Process]:
    """The workers of a run, under Ray or plain, the oldest first."""
    found = []
    for each in run.children(recursive=True):
        try:
            words = " ".join(each.cmdline())
        except psutil.Error:
            continue
        if words.startswith("ray::RayTrainWorker") or "spawn_main" in words:
            found.append(each)
    return sorted(found, key=lambda each: each.create_time())


def everything(run: psutil.Process) -> None:
    """Kill the run and all it started."""
    below = run.children(recursive=True)
    for each in [run, *below]:
        if each.is_running():
            each.kill()


def end(run: subprocess.Popen[bytes]) -> None:
    """Kill a run that has not ended, with all it started."""
    if run.poll() is None:
        everything(psutil.Process(run.pid))
        run.wait()


CASES = (
    Case("worker killed under Ray", (), lambda run: workers(run)[-1].kill()),
    Case(
        "worker stopped under Ray, hang timeout 10 s",
        (),
        lambda run: workers(run)[-1].send_signal(signal.SIGSTOP),
    ),
    Case(
        "worker killed, plain processes", ("--no-ray",), lambda run: workers(run)[-1].kill(), True
    ),
    Case("everything killed, plain processes", ("--no-ray",), everything, True),
)


def measure(case: Case, directory: Path, data: Path) -> Recovery:
    """Run a case in an empty directory.

    Raises:
        RuntimeError: the run made no progress in time.
    """
    at = commands.home(directory, data)
    run = _start(at, case)
    record = Record(directory)
    try:
        record.await_(lambda: record.newest() >= 50, "step 50", run)
        before, then = record.newest(), time.time()
        case.disturb(psutil.Process(run.pid))
        if case.resumes:
            run.wait(DEADLINE_S)
            run = _start(at, case, "--resume")
        record.await_(lambda: record.past(then, before) is not None, "new step", run)
    finally:
        end(run)
    back, past, first = record.back(then), record.past(then, before), record.first(then)
    assert back is not None
    assert past is not None
    last = max(record.newest(then), before)
    return Recovery(back - then, past - then, max(0, last - first + 1))


def _start(at: Home, case: Case, *more: str) -> subprocess.Popen[bytes]:
    with (at.directory / "out.txt").open("ab") as said:
        return subprocess.Popen(
            [commands.PROGRAM, "train", str(at.recipe), *CHANGES, *case.options, *more],
            cwd=at.directory,
            env=commands.environment(),
            stdout=said,
            stderr=said,
        )


def page(found: dict[str, Recovery]) -> str:
    """The result as Markdown."""
    lines = [
        "# Recovery",
        "",
        "`python -m benchmarks.recovery --out benchmarks/results/recovery.md`: two workers, a checkpoint every",
        "20 steps. Seconds from the kill until workers were there again and until a new step was done; where",
        "somebody has to start the run again, that was done at once. Beside other work: expect less on a quiet",
        "machine.",
        "",
        "| what happened | workers again, s | past the newest step, s | steps done twice |",
        "| --- | --- | --- | --- |",
    ]
    for name, each in found.items():
        lines.append(f"| {name} | {each.back_s:.1f} | {each.past_s:.1f} | {each.steps_twice} |")
    return "\n".join([*lines, "", sentence(machine())]) + "\n"


def main() -> None:
    """Measure the cases asked for, print them and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--case", choices=names, action="append", help="all if not given")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    asked = parser.parse_args()
    found = {}
    with TemporaryDirectory() as data:
        write_world(Path(data) / "data", 8_000, 6, 1)
        for case in CASES:
            if asked.case is None or case.name in asked.case:
                with TemporaryDirectory() as directory:
                    found[case.name] = measure(case, Path(directory), Path(data) / "data")
                print(case.name, found[case.name], flush=True)
    text = page(found)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
