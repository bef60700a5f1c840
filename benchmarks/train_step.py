"""How long a training step takes, beside a hand-written TorchRec loop and FuxiCTR.

python -m benchmarks.train_step --rows 100000 --pairs 5

DCN-v2, 26 tables x 16, 13 numbers, 3 cross layers, 3 x 400, batch 4,096. The programs of one case
live side by side and take turns, one window of steps at a time, so that a change of the machine's
speed meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import venv
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.channel import ROOT, Program
from benchmarks.machine import machine, sentence
from benchmarks.result import write
from benchmarks.train_data import BATCH, write_rows

OUT = ROOT / "out" / "bench" / "train"
FUXICTR = ROOT / "out" / "bench" / "fuxictr"
FUXICTR_PACKAGES = ("fuxictr==2.3.10", "h5py", "polars", "polars-runtime-32")
FUXICTR_LARGEST = 400_000
"""Its tables, gradients and two moments of more rows would not fit a small machine."""
PLAIN_GOAL = 0.97
GOALS = {
    ("fuxictr", "fp32"): {100_000: 1.3, 400_000: 3.2},
    ("fuxictr", "bf16"): {100_000: 2.0, 400_000: 5.5},
}


@dataclass(frozen=True, slots=True)
class Windows:
    """How a case is measured.

    Args:
        pairs: windows of each program, in turns.
        steps: steps of a window.
        threads: cores of each program.
        with_fuxictr: whether FuxiCTR takes part.
    """

    pairs: int = 5
    steps: int = 10
    threads: int = 2
    with_fuxictr: bool = True


def fuxictr_python() -> Path:
    """The interpreter of FuxiCTR's own environment, made if need be; it sees this one's packages."""
    python = FUXICTR / "bin" / "python"
    if not (FUXICTR / "ready").exists():
        venv.create(FUXICTR, clear=True)
        own = next(FUXICTR.glob("lib/python*/site-packages"))
        (own / "stack.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*install, "--no-deps", *FUXICTR_PACKAGES], check=True, stdout=sys.stderr)
        (FUXICTR / "ready").touch()
    return python


def measure(table_rows: int, precision: str, windows: Windows) -> dict[str, Any]:
    """Milliseconds per step of every program at one size and precision, in alternating windows."""
    directory = OUT / f"{table_rows}-rows"
    data = write_rows(table_rows, directory)
    commands = _commands(directory, data, table_rows, precision, windows)
    with ExitStack() as stack:
        programs = []
        for name, command in commands.items():
            program = Program(name, command, windows.threads, directory / f"{name}.log")
            stack.callback(program.close)
            programs.append(program)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        cpu: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(windows.pairs):
            for program in programs:
                seconds, cpu_seconds = program.window()
                taken[program.name].append(seconds / windows.steps * 1e3)
                cpu[program.name].append(cpu_seconds / windows.steps * 1e3)
        ours = programs[0]
        memory = {**ours.facts, "peak_bytes": ours.peak_bytes}
    memory.pop("ready")
    return {
        "table_rows": table_rows,
        "precision": precision,
        "programs": {
            name: _summary(some, taken["ours"])
            | {"cpu_ms_per_step": round(statistics.median(cpu[name]), 1)}
            for name, some in taken.items()
        },
        "memory": memory,
    }


def _commands(
    directory: Path, data: Path, table_rows: int, precision: str, windows: Windows
) -> dict[str, list[str]]:
    steps = ["--steps", str(windows.steps)]
    sized = [str(directory / "rows.npz"), "--table-rows", str(table_rows), *steps]
    here = [sys.executable, "-m"]
    commands = {
        "ours": [*here, "benchmarks.ours", str(data), "--precision", precision, *steps],
        "plain": [*here, "benchmarks.plain", *sized, "--precision", precision],
    }
    if windows.with_fuxictr and table_rows <= FUXICTR_LARGEST:
        commands["fuxictr"] = [str(fuxictr_python()), "-m", "benchmarks.fuxictr_step", *sized]
    return commands


def _summary(taken: list[float], ours: list[float]) -> dict[str, Any]:
    """Median and range of the windows, and how often ours would fit into one, pair by pair."""
    ratios = [other / own for other, own in zip(taken, ours, strict=True)]
    return {
        "ms_per_step": round(statistics.median(taken), 1),
        "lowest": round(min(taken), 1),
        "highest": round(max(taken), 1),
        "rows_per_second": round(BATCH / statistics.median(taken) * 1e3),
        "over_ours": round(statistics.median(ratios), 3),
        "over_ours_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def goal_of(program: str, case: dict[str, Any]) -> float | None:
    """The least ratio that the project sets itself for a case, if it does."""
    if program == "plain":
        return PLAIN_GOAL
    return GOALS.get((program, case["precision"]), {}).get(case["table_rows"])


def table(cases: list[dict[str, Any]]) -> list[list[object]]:
    """The results as rows: one of every program and case; see `COLUMNS`."""
    rows: list[list[object]] = []
    for case in cases:
        for name, some in case["programs"].items():
            goal = goal_of(name, case)
            low, high = some["over_ours_range"]
            rows.append(
                [
                    f"{case['table_rows']:,}",
                    case["precision"] if name != "fuxictr" else "fp32",
                    name if name == "ours" else f"{name}, beside ours {case['precision']}",
                    some["ms_per_step"],
                    f"{some['lowest']}-{some['highest']}",
                    some["cpu_ms_per_step"],
                    "" if name == "ours" else f"{some['over_ours']:.2f}",
                    "" if name == "ours" else f"{low:.2f}-{high:.2f}",
                    "" if goal is None else f"{goal} {'ok' if some['over_ours'] >= goal else 'no'}",
                ]
            )
    return rows


COLUMNS = [
    "rows a table",
    "precision",
    "program",
    "ms a step",
    "range",
    "CPU ms",
    "x ours",
    "range",
    "goal",
]


def markdown(document: dict[str, Any]) -> str:
    """The results as a page."""
    lines = [
        "# Train step",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}. "
        f"Medians of {document['pairs']} alternating windows "
        f"of {document['steps']} steps; 'x ours' is the median over the pairs.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in table(document["cases"])),
        "",
        "| rows a table | precision | before, GiB | peak, GiB | added | planned "
        "| tables with state |",
        "|" + " --- |" * 7,
    ]
    for case in document["cases"]:
        memory = {name: size / 2**30 for name, size in case["memory"].items()}
        before, peak = memory["before_bytes"], memory["peak_bytes"]
        lines.append(
            f"| {case['table_rows']:,} | {case['precision']} | {before:.2f} | {peak:.2f} "
            f"| {peak - before:.2f} | {memory['planner_bytes']:.2f} "
            f"| {memory['table_bytes']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases, print a table or JSON, and write both where `--out` says."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"]
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a window")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--no-fuxictr", action="store_true")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    windows = Windows(asked.pairs, asked.steps, asked.threads, not asked.no_fuxictr)
    document: dict[str, Any] = {
        "command": "python -m benchmarks.train_step "
        + " ".join(sys.argv[1:]).replace(f"{ROOT}/", ""),
        "machine": machine(),
        "pairs": asked.pairs,
        "steps": asked.steps,
        "threads": asked.threads,
        "cases": [],
    }
    for table_rows in asked.rows:
        for precision in asked.precision:
            print(f"{table_rows:,} rows a table, {precision}", file=sys.stderr)
            document["cases"].append(measure(table_rows, precision, windows))
            write(asked.out, document, markdown(document))
    print(json.dumps(document, indent=1) if asked.json else markdown(document))


if __name__ == "__main__":
    main()
