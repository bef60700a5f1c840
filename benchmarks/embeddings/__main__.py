"""How long a step of the embedding tables takes, beside other ways of training the same sets.

    python -m benchmarks.embeddings --out benchmarks/results/embeddings

K sets of F tables, packed into rows or not: forward, backward from given output gradients, and update.
Beside ours: FBGEMM's kernel alone (the limit), TorchRec with K tables for each feature, PyTorch's
EmbeddingBag with sparse gradients and Embedding with dense ones, each with Adagrad. On two ranks: ours
and TorchRec's, tables placed whole or cut by rows. Also the ids that are sent, the memory at its peak,
and what one set more costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.embeddings.cases import (
    BAGS,
    COUNTS,
    CUDA_WIDTHS,
    WIDTHS,
    Case,
    Sizes,
    grouped,
    one_rank,
    two_ranks,
)
from benchmarks.embeddings.chart import svg
from benchmarks.embeddings.memory import GOAL, measure_memory
from benchmarks.embeddings.page import PEERS, markdown
from benchmarks.embeddings.ranks import Plan, measured
from benchmarks.machine import machine

BASE = {"cpu": (200_000, 4_096), "cuda": (1_000_000, 65_536)}
"""Rows of a table and batch at width 16 with bags of one, by device."""
_COPIED = {"cpu": 256 << 20, "cuda": 2 << 30}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="K")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--bags", type=int, nargs="+", default=list(BAGS))
    parser.add_argument("--ranks", type=int, nargs="+", choices=[1, 2])
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, help="of a table at width 16")
    parser.add_argument("--batch", type=int, help="on all ranks, at width 16 with bags of one")
    parser.add_argument("--batches", type=int, nargs="+", help="several instead of --batch")
    parser.add_argument("--types", choices=["fp32", "fp16"], nargs="+", default=["fp32"])
    parser.add_argument(
        "--peers", choices=list(PEERS), nargs="+", default=[], help="all if not given"
    )
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.12, help="length of a window")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--curve", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.svg")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(given)
    rows, batch = BASE[asked.device]
    asked.rows, asked.batch = asked.rows or rows, asked.batch or batch
    asked.batches = asked.batches or [asked.batch]
    asked.widths = asked.widths or list(CUDA_WIDTHS if asked.device == "cuda" else WIDTHS)
    asked.ranks = asked.ranks or ([1, 2] if asked.device == "cpu" else [1])
    return asked


def plan_of(asked: argparse.Namespace, ranks: int) -> Plan:
    """What the processes of one number of ranks measure."""
    sizes = Sizes(asked.device, asked.tables, asked.rows, asked.batch)
    choose = one_rank if ranks == 1 else two_ranks
    cases = [
        case
        for data_type in asked.types
        for batch in asked.batches
        for case in choose(
            Sizes(asked.device, asked.tables, asked.rows, batch, data_type),
            asked.counts,
            asked.widths,
            asked.bags,
        )
    ]
    curve: list[Case] = []
    if ranks == 1 and len(asked.counts) > 1 and asked.curve:
        counts = range(1, max(asked.counts) + 1)
        every = (sizes.case(k, asked.widths[0], asked.bags[0], "uniform") for k in counts)
        curve = [case for case in every if case.can_pack]
    return Plan(
        groups=tuple(tuple(group) for group in grouped(cases)),
        curve=tuple(curve),
        windows=asked.windows,
        seconds=asked.seconds,
        threads=asked.threads,
        copied=_COPIED[asked.device] if ranks == min(asked.ranks) else 0,
        only=tuple(asked.peers),
    )


def memory_runs(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of our tables: packed and separate, and packed with long bags and wide sets."""
    sizes = Sizes(asked.device, asked.tables, asked.rows, asked.batch)
    k, width, bag = 4, asked.widths[0], asked.bags[0]
    chosen = [(width, bag, "packed"), (width, bag, "separate")]
    chosen += [(width, asked.bags[-1], "packed"), (asked.widths[-1], bag, "packed")]
    runs = []
    for width, bag, layout in dict.fromkeys(chosen):
        case = sizes.case(k, width, bag, "uniform")
        print(f"memory, {layout}, {width} wide, bags of {bag}", file=sys.stderr)
        memory = measure_memory(case, layout, asked.threads)
        runs.append(
            {
                **case.document(),
                "layout": layout,
                "needed": memory.needed,
                "added": memory.added,
                "ratio": round(memory.ratio, 3),
                "goal": GOAL,
            }
        )
    return runs


def main() -> None:
    """Measure everything, print a page or JSON, and write them and a chart where `--out` says."""
    asked = arguments()
    document: dict[str, Any] = {
        "command": "python -m benchmarks.embeddings "
        + " ".join(sys.argv[1:]).replace(f"{ROOT}/", ""),
        "machine": machine(),
        "device": asked.device,
        "tables": asked.tables,
        "windows": asked.windows,
        "seconds": asked.seconds,
        "threads": asked.threads,
        "copy_gb_per_s": None,
        "rows": [],
        "curve": None,
        "memory": [],
    }
    if asked.device == "cuda":
        document["machine"]["device"] = _device_name()
    for ranks in asked.ranks:
        for result in measured(plan_of(asked, ranks), ranks):
            take(document, result)
            if asked.out:
                write(asked.out, document)
    if asked.memory:
        document["memory"] = memory_runs(asked)
    if asked.out:
        write(asked.out, document)
    print(json.dumps(document, indent=1) if asked.json else markdown(document))


def take(document: dict[str, Any], result: dict[str, Any]) -> None:
    """Put one result where it belongs, and say that it is there."""
    if "rows" in result:
        document["rows"] += result["rows"]
        case = result["rows"][0]["case"]
        print(" ".join(f"{name} {value}" for name, value in case.items()), file=sys.stderr)
    elif "curve" in result:
        document["curve"] = {**result["curve"], "points": result["points"]}
    else:
        document.update(result)


def write(out: Path, document: dict[str, Any]) -> None:
    """OUT.json and OUT.md, and OUT.svg once there is something to draw."""
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    if document["rows"]:
        out.with_suffix(".md").write_text(markdown(document))
        out.with_suffix(".svg").write_text(svg(document))


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
