"""How training scales on this machine, what a checkpoint costs, and what the planner foresees for more ranks.

    python -m benchmarks.scaling --out benchmarks/results/scaling

Ranks are processes of this machine that share its cores: 1 and 2 ranks have as many threads together as there
are cores, 4 ranks on 2 cores have one each. So nothing gets faster with ranks here; what is seen is what the
exchange between ranks and the split of the batch cost. Strong: one global batch. Weak: one batch a rank.
Rounds alternate between all cases, and ratios are taken within a round. The forecast is what `prismrec plan`
says of the same tables on GPU machines of eight.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.machine import machine, sentence
from benchmarks.result import write
from benchmarks.scaling_checkpoint import save_once
from benchmarks.train_data import recipe, write_rows
from prismrec.config import dump, from_dict
from prismrec.config.machine import threads_per_process
from prismrec.data.source import open_data
from prismrec.jobs.plan import Machines, plan_recipe

RANKS = (1, 2, 4)
FORECAST = (1, 8, 64, 256, 1024)
STRONG, WEAK = 4096, 1024
"""Rows of a step: of all ranks, and of each."""
TABLE_ROWS = 100_000
CHECKPOINT_ROWS = 300_000
GIB = 2**30


def run(data: Path, ranks: int, batch: int, steps: int, out: Path) -> dict[str, Any]:
    """Rows per second of one run."""
    tree = dump(recipe(data, "fp32", 10))
    tree["out"] = str(out)
    tree["data"]["global_batch_size"] = batch
    tree["train"] |= {"steps": steps, "epochs": None}
    tree["workers"]["count"] = ranks
    tree["tracking"] |= {"uri": f"sqlite:///{out}/mlflow.db", "registry_name": ""}
    path = out / "recipe.json"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dump(from_dict(tree))))
    program = [sys.executable, "-m", "benchmarks.scaling", "--run", str(path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def train(path: Path) -> dict[str, Any]:
    """Train a recipe on plain processes of this machine."""
    from prismrec.jobs.run import Options
    from prismrec.jobs.train import run_training

    result = run_training(from_dict(json.loads(path.read_text())), Options(use_ray=False))
    return {"rows_per_second": result.examples_per_second}


def disk(directory: Path, size: int) -> float:
    """Bytes per second of writing a file of noise and waiting until it is on disk."""
    block = os.urandom(2**24)
    start = time.perf_counter()
    with (directory / "noise").open("wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (directory / "noise").unlink()
    return max(1, size // len(block)) * len(block) / seconds


def save(out: Path) -> dict[str, Any]:
    """Seconds that one rank's checkpoint takes until it is on disk, and what the disk makes of the size."""
    copied, seconds, size = save_once(out / "checkpoint", CHECKPOINT_ROWS)
    return {
        "copy_seconds": copied,
        "seconds": seconds,
        "bytes": size,
        "disk_bytes_per_second": disk(out, size),
    }


def forecast(data: Path) -> list[dict[str, Any]]:
    """Milliseconds of the tables in a step, by number of ranks, with as many rows a rank."""
    lines = []
    tree = dump(recipe(data, "fp32", 10))
    tree["train"]["device"] = "cuda"
    chosen = from_dict(tree)
    for ranks in FORECAST:
        machines = Machines(ranks, min(8, ranks), "cuda", 80 * GIB, 100 * GIB)
        start = time.perf_counter()
        plan = plan_recipe(chosen, machines, WEAK)
        lines.append(
            {
                "ranks": ranks,
                "milliseconds": plan["milliseconds"],
                "mean_milliseconds": statistics.mean(r["milliseconds"] for r in plan["ranks"]),
                "ways": sorted({line["kind"] for line in plan["tables"]}),
                "seconds": time.perf_counter() - start,
            }
        )
    return lines


def measure(directory: Path, steps: int, rounds: int) -> dict[str, Any]:
    """All numbers of the page."""
    data = write_rows(TABLE_ROWS, directory)
    open_data(str(data))
    cases = [("strong", n, STRONG) for n in RANKS] + [("weak", n, WEAK * n) for n in RANKS]
    found: dict[tuple[str, int], list[float]] = {(name, n): [] for name, n, _ in cases}
    for number in range(rounds):
        for name, ranks, batch in cases:
            out = directory / "run"
            shutil.rmtree(out, ignore_errors=True)
            rate = run(data, ranks, batch, steps, out)["rows_per_second"]
            found[name, ranks].append(rate)
            print(f"round {number}: {name} {ranks} ranks {rate:,.0f} rows/s", file=sys.stderr)
    lines = []
    for (name, ranks), rates in found.items() if rounds else ():
        ratios = [mine / one for mine, one in zip(rates, found[name, 1], strict=True)]
        lines.append(
            {
                "scaling": name,
                "ranks": ranks,
                "threads": threads_per_process(ranks, None),
                "batch": dict(((n, r), b) for n, r, b in cases)[name, ranks],
                "rows_per_second": statistics.median(rates),
                "low": min(rates),
                "high": max(rates),
                "of_one_rank": statistics.median(ratios),
            }
        )
    saves = [save(directory) for _ in range(max(rounds, 3))]
    return {"results": lines, "saves": saves, "forecast": forecast(data)}


def plot(document: dict[str, Any], path: Path) -> None:
    """Measured rows per second on this machine, and the forecast, as a picture."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    *left, right = figure.subplots(1, 2 if document["results"] else 1, squeeze=False)[0]
    for panel in left:
        for name in ("strong", "weak"):
            here = [each for each in document["results"] if each["scaling"] == name]
            panel.plot(
                [e["ranks"] for e in here], [e["of_one_rank"] for e in here], "o-", label=name
            )
        panel.set(xlabel="ranks on the same cores", ylabel="rows/s, of one rank", ylim=(0, None))
        panel.legend()
    seen = document["forecast"]
    right.plot(
        [e["ranks"] for e in seen], [e["milliseconds"] for e in seen], "o-", label="busiest rank"
    )
    right.plot(
        [e["ranks"] for e in seen], [e["mean_milliseconds"] for e in seen], "o--", label="mean"
    )
    right.set(xlabel="ranks, eight a machine", ylabel="ms of the tables (forecast)", xscale="log")
    right.legend()
    for axes in (*left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _training(document: dict[str, Any]) -> list[str]:
    """What was measured of training, in lines."""
    if not document["results"]:
        return ["Training was not measured here: `--rounds 0`."]
    lines = [
        f"DCN-v2 over 26 tables of {TABLE_ROWS:,} rows x 16 and 13 numbers, CPU, gloo, {document['steps']} "
        f"steps a run, {document['rounds']} alternating rounds; medians, and ratios within rounds.",
        "",
        "All ranks share the same cores, so a perfect exchange would give 100 % in both: the rows below are "
        "what several ranks cost, not what more machines give.",
        "",
        "| scaling | ranks | threads each | rows of a step | rows/s | range | of one rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {r['scaling']} | {r['ranks']} | {r['threads']} | {r['batch']:,} | {r['rows_per_second']:,.0f} | "
        f"{r['low']:,.0f} to {r['high']:,.0f} | {r['of_one_rank']:.0%} |"
        for r in document["results"]
    ]


def page(document: dict[str, Any]) -> str:
    """The results as a page."""
    facts = document["machine"]
    lines = [
        "# Scaling",
        "",
        f"`{document['command']}`, {sentence(facts)}; load average before {facts['load_before']:.1f}.",
        "",
        *_training(document),
    ]
    lines += [
        "",
        "## Checkpoints",
        "",
        f"A whole checkpoint of one rank with 26 tables of {CHECKPOINT_ROWS:,} rows x 16 and Adagrad's state, "
        "with its digests, beside a file of the same size written and flushed next to it. Training stands "
        "still for the copy only.",
        "",
        "| bytes | copy | until on disk | bytes/s | the disk's | of the disk |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in document["saves"]:
        speed = each["bytes"] / each["seconds"]
        disk_speed = each["disk_bytes_per_second"]
        lines.append(
            f"| {each['bytes'] / 1e6:,.0f} MB | {each['copy_seconds']:.2f} s | {each['seconds']:.2f} s | "
            f"{speed / 1e6:,.0f} MB/s | {disk_speed / 1e6:,.0f} MB/s | {speed / disk_speed:.0%} |"
        )
    lines += [
        "",
        "## Forecast",
        "",
        f"What the planner says of the same tables with {WEAK:,} rows a rank (weak scaling) on GPU machines "
        "of eight, with TorchRec's assumptions on their bandwidths: a forecast, nothing of it was measured.",
        "",
        "| ranks | tables, busiest rank | mean rank | ways | planned in |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {f['ranks']:,} | {f['milliseconds']:.2f} ms | {f['mean_milliseconds']:.2f} ms | "
        f"{', '.join(f['ways'])} | {f['seconds']:.1f} s |"
        for f in document["forecast"]
    ]
    return "\n".join([*lines, "", "![Measured and foreseen](scaling.svg)"]) + "\n"


def main() -> None:
    """Measure, and write the page where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("out/bench/scaling"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of training; 0 measures the rest only"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.svg")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        print(json.dumps(train(chosen.run)))
        return
    document: dict[str, Any] = {
        "command": f"python -m benchmarks.scaling {' '.join(sys.argv[1:])}".strip(),
        "machine": machine(),
        "steps": chosen.steps,
        "rounds": chosen.rounds,
    }
    document |= measure(chosen.directory.absolute(), chosen.steps, chosen.rounds)
    write(chosen.out, document, page(document))
    if chosen.out:
        plot(document, chosen.out.with_suffix(".svg"))
    print(page(document))


if __name__ == "__main__":
    main()
