"""What kills cost on a cluster of two hosts, and how long a job takes to its first step.

    python -m benchmarks.recovery_hosts --out benchmarks/results/recovery_hosts.md
    python -m benchmarks.recovery_hosts --case "second host killed"

The hosts are two network namespaces of this machine with a bridge between them, each with room for one
of the run's two workers (`tests/helpers/hosts.py`); root and iproute2 are needed. Every step is recorded
and every third one saved, so that nothing but the start of processes is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine, sentence
from tests.helpers.hosts import Host, two_hosts, why_impossible
from tests.ray import commands
from tests.ray.commands import PROGRAM, Home

DEADLINE_S = 900
STEPS = 15
"""Steps of the undisturbed part of a run."""


@dataclass(frozen=True)
class Cluster:
    """Two hosts with a cluster.

    Args:
        first: the host of the head, on which commands run.
        second: the other one.
        address: of the cluster.
        dashboard: its URL, seen from the first host.
    """

    first: Host
    second: Host
    address: str
    dashboard: str

    def join(self) -> None:
        """Make the second host a node."""
        done = self.second.run(
            PROGRAM, "cluster", "join", self.address, "--workers", "1", timeout_s=DEADLINE_S
        )
        if done.returncode:
            raise RuntimeError(done.stderr)


def main() -> None:
    """Run the cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="all if not given")
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    asked = parser.parse_args()
    if reason := why_impossible():
        raise SystemExit(reason)
    facts, rows = machine(), []
    with TemporaryDirectory(prefix="recovery") as folder, two_hosts(Path(folder)) as (one, two):
        place = Path(folder)
        data, cluster = commands.world(place), start_cluster(one, two)
        for name in asked.case or CASES:
            (place / name.replace(" ", "-")).mkdir()
            seconds, what = CASES[name](
                cluster, commands.home(place / name.replace(" ", "-"), data)
            )
            rows.append((name, seconds, what))
            print(f"{name}: {seconds:.0f} s ({what})", flush=True)
    if asked.out is not None:
        asked.out.write_text(page(facts, rows))


def start_cluster(one: Host, two: Host) -> Cluster:
    """A cluster of both hosts."""
    command = [PROGRAM, "cluster", "up", "--host", one.address, "--workers", "1", "--json"]
    done = one.run(*command, timeout_s=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(done.stderr)
    node = json.loads(done.stdout)
    shutil.copy(one.state / "auth_token", two.state / "auth_token")
    cluster = Cluster(one, two, node["address"], node["dashboard"])
    cluster.join()
    return cluster


def host_killed(cluster: Cluster, at: Home) -> tuple[float, str]:
    """SIGKILL everything on the second host, and let it join again at once."""
    process = train(cluster, at)
    reach(at, STEPS)
    killed = time.time()
    cluster.second.kill()
    cluster.join()
    joined = time.time() - killed
    await_(lambda: is_past(at, killed), "new step after the kill")
    seconds = time.time() - killed
    stop(process)
    return seconds, f"of which {joined:.0f} s until the host had joined again"


def driver_killed(cluster: Cluster, at: Home) -> tuple[float, str]:
    """SIGKILL the process that runs `prismrec train`, and resume the run at once."""
    process = train(cluster, at)
    reach(at, STEPS)
    killed = time.time()
    process.kill()
    process.wait()
    process = train(cluster, at, "--resume")
    await_(lambda: is_past(at, killed), "new step of the resumed run")
    seconds = time.time() - killed
    stop(process)
    return seconds, "`--resume` started at once"


def job_submitted(cluster: Cluster, at: Home) -> tuple[float, str]:
    """`prismrec submit`, until the run's first step."""
    begun = time.time()
    command = [PROGRAM, "submit", str(at.recipe), "train.epochs=1000", "train.log_every=1"]
    done = cluster.first.run(*command, "--address", cluster.dashboard, timeout_s=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(done.stderr)
    returned = time.time() - begun
    await_(lambda: progress(at, begun) > 0, "first step of the job")
    seconds = time.time() - begun
    job = done.stdout.strip()
    stopped = cluster.first.run(
        PROGRAM, "jobs", "stop", job, "--address", cluster.dashboard, timeout_s=DEADLINE_S
    )
    if stopped.returncode:
        raise RuntimeError(stopped.stderr)
    return seconds, f"of which {returned:.0f} s until the command had returned"


CASES: dict[str, Callable[[Cluster, Home], tuple[float, str]]] = {
    "job submitted, to its first step": job_submitted,
    "driver killed": driver_killed,
    "second host killed": host_killed,
}
"""What is measured, by the name that the page has for it."""


def train(cluster: Cluster, at: Home, *more: str) -> subprocess.Popen[str]:
    """`prismrec train` over both hosts, long enough to be disturbed."""
    return subprocess.Popen(
        cluster.first.command(PROGRAM, "train", str(at.recipe), "train.epochs=1000", "train.log_every=1",
                              "--address", cluster.address, *more),
        cwd=at.directory,
        env=cluster.first.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


def stop(process: subprocess.Popen[str]) -> None:
    """Have a run save and leave."""
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=DEADLINE_S)


def reach(at: Home, step: int) -> None:
    """Wait until a run has recorded a step."""
    await_(lambda: progress(at) >= step, f"step {step}")


def progress(at: Home, since: float = 0, until: float = math.inf) -> int:
    """The newest step whose loss was recorded between two times; 0 where there is none."""
    found = [each for each in events(at) if "train/loss" in each["values"]]
    return max((each["step"] for each in found if since < each["time"] <= until), default=0)


def is_past(at: Home, killed: float) -> bool:
    """Whether workers that started after a kill have done a step that none had done before.

    Those from before the kill may go on for a moment, until Ray ends them.
    """
    starts = [each["time"] for each in events(at) if each["event"] == "parameters"]
    again = min((each for each in starts if each > killed), default=math.inf)
    return progress(at, since=again) > progress(at, until=again)


def events(at: Home) -> list[dict[str, Any]]:
    """What the run has recorded; a line that is being written is left out."""
    lines = [
        line
        for path in at.directory.glob("runs/*/events.jsonl")
        for line in path.read_text().splitlines(keepends=True)
    ]
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [each for each in found if "values" in each]


def await_(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within {DEADLINE_S} s")
        time.sleep(0.1)


def page(facts: dict[str, Any], rows: list[tuple[str, float, str]]) -> str:
    """The Markdown page."""
    lines = [
        "# Kills on a cluster of two hosts",
        "",
        "`python -m benchmarks.recovery_hosts --out benchmarks/results/recovery_hosts.md`; one run of each.",
        "Seconds from the kill, or from the command, to the first step that the run had not done before.",
        "Both hosts are network namespaces of one machine and share its cores.",
        "",
        f"{sentence(facts)}; load before: {facts['load_before']:.1f} (other programs were running; most of",
        "the time is the start of processes, which that stretches).",
        "",
        "| case | seconds | |",
        "| --- | ---: | --- |",
        *(f"| {name} | {seconds:.0f} | {what} |" for name, seconds, what in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
