"""Which runs there are, what is known of them, and running those that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from benchmarks.channel import ROOT
from benchmarks.frappe.setting import FIELDS, MODELS, PROGRAMS, SEEDS, Job, facts, grid
from benchmarks.train_step import fuxictr_python

Runs = dict[str, list[dict[str, Any]]]
"""By program, the runs done: a job and its results in one."""


def trials(runs: Runs, program: str, model: str, seed: int) -> list[dict[str, Any]]:
    """Runs of a model with one seed, one for each learning rate tried."""
    return [each for each in runs[program] if (each["model"], each["seed"]) == (model, seed)]


def chosen(runs: Runs, program: str, model: str) -> float | None:
    """The rate with the best AUC on the validation rows at the first seed; None until all are tried."""
    tried = trials(runs, program, model, SEEDS[0])
    if len(tried) < len(grid(model)):
        return None
    return float(max(tried, key=lambda each: each["valid_auc"])["rate"])


def finals(runs: Runs, program: str, model: str) -> list[dict[str, Any]]:
    """Runs of all seeds with the chosen rates."""
    rate = chosen(runs, program, model)
    return [
        each
        for seed in SEEDS
        for each in trials(runs, program, model, seed)
        if each["rate"] == rate
    ]


def complete(runs: Runs) -> list[str]:
    """Models of which every run is done."""
    return [
        model
        for model in MODELS
        if all(len(finals(runs, program, model)) == len(SEEDS) for program in PROGRAMS)
    ]


def next_job(runs: Runs, program: str) -> Job | None:
    """The first run of a program that is not done."""
    for model in MODELS:
        rate = chosen(runs, program, model)
        wanted = [(SEEDS[0], each) for each in grid(model)]
        wanted += [(seed, rate) for seed in SEEDS[1:] if rate is not None]
        for seed, each in wanted:
            job = {"model": model, "seed": seed, "rate": each}
            if not any(job.items() <= done.items() for done in runs[program]):
                return job
    return None


def write_rows(data: Path, out: Path) -> None:
    """The prepared rows as arrays, for a program that does not read Parquet: the very same ids."""
    columns = json.loads((data / "schema.json").read_text())["columns"]
    rows = ds.dataset(data, format="parquet", exclude_invalid_files=True).to_table()
    np.savez(
        out,
        ids=np.stack([rows[name].to_numpy().astype(np.int64) for name in FIELDS]),
        table_rows=np.array([columns[name]["num_ids"] for name in FIELDS]),
        split=rows["split"].to_numpy(),
        label=rows["label"].to_numpy().astype(np.float32),
    )


def read_runs(cache: Path) -> Runs:
    """The runs done so far; a new start if there are none, or only runs of another setting."""
    if cache.exists():
        stored = json.loads(cache.read_text())
        if stored["setting"] == facts():
            runs: Runs = stored["runs"]
            return runs
        print(f"{cache} is of another setting: starting anew", file=sys.stderr)
    return {name: [] for name in PROGRAMS}


def write_runs(cache: Path, runs: Runs) -> None:
    """Keep the runs, with the setting they share."""
    cache.write_text(json.dumps({"setting": facts(), "runs": runs}, indent=1) + "\n")


def go_on(data: Path, cache: Path, seconds: float) -> Runs:
    """Do what is left, both programs side by side, and start nothing after so many seconds.

    Args:
        data: the prepared rows.
        cache: JSON of the runs done, read first and written after each.
        seconds: how long runs are started.
    """
    runs = read_runs(cache)
    rows = cache.with_suffix(".npz")
    if not rows.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_rows(data, rows)
    commands = {
        "ours": [sys.executable, "-m", "benchmarks.frappe.ours", str(data)],
        "fuxictr": [str(fuxictr_python()), "-m", "benchmarks.frappe.fuxictr_fit", str(rows)],
    }
    deadline, writing = time.monotonic() + seconds, threading.Lock()

    def serve(program: str) -> None:
        log = cache.with_name(f"{program}.log").open("w")
        with subprocess.Popen(
            commands[program],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            while time.monotonic() < deadline and (job := next_job(runs, program)):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{program} ended; see {log.name}")
                with writing:
                    runs[program].append(job | json.loads(line))
                    write_runs(cache, runs)
            process.stdin.close()

    with ThreadPoolExecutor() as pool:
        list(pool.map(serve, PROGRAMS))
    return runs
