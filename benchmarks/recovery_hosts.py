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
from benchmarks.recovery_record import DEADLINE_S, Record
from tests.helpers.hosts import Host, two_hosts, why_impossible
from tests.ray import commands
from tests.ray.commands import PROGRAM, Home

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
    reach(at, process)
    killed = time.time()
    cluster.second.kill()
    cluster.join()
    joined = time.time() - killed
    go_on(at, killed, process)
    seconds = time.time() - killed
    stop(process)
    return seconds, f"of which {joined:.0f} s until the host had joined again"


def driver_killed(cluster: Cluster, at: Home) -> tuple[float, str]:
    """SIGKILL the process that runs `prismrec train`, and resume the run at once."""
    process = train(cluster, at)
    reach(at, process)
    killed = time.time()
    process.kill()
    process.wait()
    process = train(cluster, at, "--resume")
    go_on(at, killed, process)
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
    record = Record(at.directory)
    record.await_(lambda: record.newest() > 0, "first step of the job")
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


def reach(at: Home, process: subprocess.Popen[str]) -> None:
    """Wait until a run has recorded its undisturbed part."""
    record = Record(at.directory)
    record.await_(lambda: record.newest() >= STEPS, f"step {STEPS}", process)


def go_on(at: Home, killed: float, process: subprocess.Popen[str]) -> None:
    """Wait until a run has done a step that none had done before the kill."""
    record = Record(at.directory)
    record.await_(lambda: record.past(killed) is not None, "new step after the kill", process)


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
