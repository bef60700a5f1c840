"""A step of the tables beside FBGEMM, TorchRec and PyTorch: `prismrec bench embeddings` on the device.

    python -m benchmarks.gpu.tables --out out/tables.json
    python -m benchmarks.gpu.tables --sweep --out out/sweep.json

Each width is measured in a process of its own; one that fails stops no other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from benchmarks.embeddings.__main__ import arguments, plan_of
from benchmarks.embeddings.goals import goals, rate
from benchmarks.embeddings.page import PEERS
from benchmarks.embeddings.ranks import measured
from benchmarks.gpu.results import Asked, Table, asked

QUICK_PEERS = ("ours", "ours_separate", "tbe", "ebc")
"""Ways of the sweep: PyTorch's own are measured once, at the base size."""
_COLUMNS = ["width", "bag", "ids", "K", "batch", "type", "way", "ms (range)", "over ours"]
_RATES = ["forward GB/s", "of a copy", "step GB/s", "of a copy"]
_WINDOWS = ["--no-memory", "--no-curve", "--ranks", "1", "--windows", "5", "--seconds", "0.03"]


def runs_of(run: Asked, *, is_sweep: bool) -> list[list[str]]:
    """Command lines of the benchmark of the tables, one for each process."""
    base = ["--device", run.device, *_WINDOWS]
    if not run.is_full:
        small = [
            "--tables",
            "2",
            "--rows",
            "64",
            "--batch",
            "16",
            "--windows",
            "2",
            "--seconds",
            "0.001",
        ]
        counts = ["--counts", "4", "--widths", "16" if is_sweep else "512", "--bags", "1"]
        return [[*base, *small, *counts, "--types", *(["fp16"] if is_sweep else ["fp32"])]]
    if not is_sweep:
        return [[*base, "--bags", "1", "--widths", width] for width in ("128", "16", "64", "256")]
    quick = [*base, "--peers", *QUICK_PEERS]
    some = ["--counts", "1", "4", "--bags", "1"]
    batches = ["4096", "8192", "16384", "32768", "131072"]
    return [
        [*quick, *some, "--widths", "16", "128", "--batches", *batches],
        [*quick, "--bags", "20", "--widths", "16", "64", "128", "256"],
        [*quick, *some, "--widths", "16", "64", "128", "256", "--types", "fp16"],
    ]


def main() -> None:
    """Measure what is asked for; exit code 1 if a process failed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--sweep", action="store_true")
    chosen, rest = parser.parse_known_args()
    run = asked(__doc__, rest)
    table = run.results.table(
        "Sweep" if chosen.sweep else "Base sizes",
        [*_COLUMNS, *_RATES],
        "26 tables of one feature, Adagrad: forward, backward from given output gradients, update. Medians "
        "of 5 windows. Bytes are the least that a step moves. `over ours`: milliseconds over those of packed "
        "tables, or of separate ones for FBGEMM's separate kernel and where packed rows would be wider than "
        "1,024.",
    )
    document: dict[str, Any] = {"device": run.device, "rows": [], "copy_gb_per_s": None}
    document |= {"tables": run.choose(26, 2), "curve": None}
    failed = 0
    for command in runs_of(run, is_sweep=chosen.sweep):
        print(" ".join(command), flush=True)
        try:
            _measure(run, table, document, command)
        except RuntimeError:
            traceback.print_exc()
            failed += 1
    _judge(run, document)
    run.results.fact("document", document)
    if failed:
        sys.exit(f"{failed} processes failed")


def _measure(run: Asked, table: Table, document: dict[str, Any], command: Sequence[str]) -> None:
    for result in measured(plan_of(arguments(command), 1), 1):
        if "copy_gb_per_s" in result:
            document["copy_gb_per_s"] = document["copy_gb_per_s"] or result["copy_gb_per_s"]
        for row in result.get("rows", ()):
            document["rows"].append(row)
            run.results.add(table, *_cells(row, document["copy_gb_per_s"]))


def _cells(row: dict[str, Any], copied: float) -> list[Any]:
    case = row["case"]
    least, most = row["range"]
    forward, step = rate(row, "forward_"), rate(row)
    return [
        case["width"],
        case["bag"],
        case["ids"],
        case["k"],
        row["batch"],
        row["data_type"],
        PEERS[row["peer"]],
        f"{row['milliseconds']:.3f} ({least:.3f} to {most:.3f})",
        row["ratio"],
        round(forward),
        round(forward / copied, 3),
        round(step),
        round(step / copied, 3),
    ]


def _judge(run: Asked, document: dict[str, Any]) -> None:
    """Hold the worst row of each goal to it; the goals on a GPU are shares of its own copy."""
    if run.device != "cuda" or document["copy_gb_per_s"] is None:
        return
    for goal in goals(document):
        values = [goal.value(row) for row in document["rows"] if goal.applies(row)]
        if values:
            run.results.goal(f"{goal.text}: worst of {len(values)}", goal.least, min(values))
            run.results.fact(f"median of: {goal.text}", statistics.median(values))


if __name__ == "__main__":
    main()
