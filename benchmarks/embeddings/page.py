"""The results as a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.embeddings.goals import Row, goals, rate
from benchmarks.embeddings.ranks import SLOW_MS, SLOW_WINDOWS
from benchmarks.machine import sentence

PEERS = {
    "ours": "packed",
    "ours_separate": "separate",
    "ours_spread": "spread",
    "tbe": "FBGEMM kernel, packed",
    "tbe_separate": "FBGEMM kernel, separate",
    "ebc": "TorchRec, K tables",
    "embedding_bag": "EmbeddingBag, sparse",
    "embedding": "Embedding, dense",
}
"""Headings; the first three are ours."""


def markdown(document: dict[str, Any]) -> str:
    """The whole page."""
    rows: list[Row] = document["rows"]
    parts = [_head(document), _goal_table(document)]
    alone = [row for row in rows if row["case"]["ranks"] == 1]
    both = [row for row in rows if row["case"]["ranks"] > 1]
    if alone:
        parts += ["## One rank", _table(alone)]
    if both:
        parts += ["## Two ranks of one core each", _table(both), "## Ids sent", _ids_sent(both)]
    if document["curve"]:
        parts += ["## One set more", _curve(document["curve"])]
    if document["memory"]:
        parts += ["## Memory", _memory(document["memory"])]
    if document["device"] == "cuda":
        parts += ["## Bytes over time", _rates(rows, float(document["copy_gb_per_s"]))]
    return "\n\n".join(parts) + "\n"


def _head(document: dict[str, Any]) -> str:
    where = "\n\nNot measured on a GPU."
    if document["device"] == "cuda":
        where = f"\n\nDevice: {document['machine']['device']}."
    return (
        "# Embedding tables\n\n"
        f"`{document['command']}`, {sentence(document['machine'])}. {document['tables']} tables of one "
        "feature each, Adagrad, float32. A step is forward, backward from given output gradients, and "
        f"update; {document['threads']} threads in all. Medians of {document['windows']} windows of "
        f"{document['seconds']} s or one step ({SLOW_WINDOWS} where a step takes {SLOW_MS} ms); all ways of "
        "a case take turns on the same memory, with the same ids (uniform, or Zipf 1.05). In brackets: "
        "over packed, and FBGEMM's separate kernel over separate; the median over the windows. A copy "
        f"in memory reads and writes {document['copy_gb_per_s']} GB/s. Where a way is missing, it is that "
        "of its neighbour (K = 1), too large (dense gradients), or rows of all sets would be wider than 1,024 "
        "columns, and the others are held against separate." + where + "\n\n"
        "What was changed and what it gave: [embeddings_ladder.md](embeddings_ladder.md)."
    )


def _goal_table(document: dict[str, Any]) -> str:
    lines = [goal.line(document["rows"]) for goal in goals(document)]
    return _lines(
        ["goal", "at least", "worst", "best", "reached", "worst case"],
        (line for line in lines if line is not None),
    )


def _table(rows: Sequence[Row]) -> str:
    """A line per case, a column per way."""
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = (*row["case"].values(), row["kind"], row["batch"], row.get("data_type"))
        cases.setdefault(key, {})[row["peer"]] = row
    peers = [name for name in PEERS if any(name in each for each in cases.values())]
    is_alone = rows[0]["case"]["ranks"] == 1
    lines = []
    for of_case in cases.values():
        first = next(iter(of_case.values()))
        case = first["case"]
        cells = [case["width"], case["bag"], case["ids"], case["k"]]
        cells += [] if is_alone else [first["kind"]]
        is_half = first.get("data_type") == "fp16"
        cells += [f"{case['rows']:,}", f"{first['batch']:,}" + (" fp16" if is_half else "")]
        cells += [_cell(of_case.get(name)) for name in peers]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    kind = [] if is_alone else ["placement"]
    heading = ["width", "bag", "ids", "K", *kind, "rows", "batch"]
    return _lines([*heading, *(f"{PEERS[name]}, ms" for name in peers)], lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    factor = "" if row["peer"] == "ours" else f" ({row['ratio']:.2f})"
    return f"{row['milliseconds']:.1f}{factor}"


def _ids_sent(rows: Iterable[Row]) -> str:
    lines = [
        f"| {row['case']['k']} | {row['case']['bag']} | {row['kind']} | {PEERS[row['peer']]} "
        f"| {row['ids_sent']:,} |"
        for row in rows
        if row["case"]["ids"] == "uniform" and row["case"]["width"] == 16
    ]
    return (
        "Ids that both ranks hand to the exchange in a step, counted: packed rows take one for all "
        "sets.\n\n" + _lines(["K", "bag", "placement", "way", "ids"], lines)
    )


def added(curve: dict[str, Any], layout: str) -> list[float]:
    """Milliseconds that each set after the first one adds, medians over the windows."""
    totals = [point[layout] for point in curve["points"]]
    return [
        statistics.median(more - less for less, more in zip(*pair, strict=True))
        for pair in pairwise(totals)
    ]


def _curve(curve: dict[str, Any]) -> str:
    lines = []
    steps = zip(added(curve, "packed"), added(curve, "separate"), strict=True)
    for point, (packed, separate) in zip(curve["points"][1:], steps, strict=True):
        lines.append(
            f"| {point['k']} | {statistics.median(point['packed']):.1f} | {packed:+.1f} "
            f"| {statistics.median(point['separate']):.1f} | {separate:+.1f} |"
        )
    first = statistics.median(curve["points"][0]["packed"])
    return (
        f"{curve['width']} wide, bags of {curve['bag']}, {curve['ids']} ids, {curve['rows']:,} rows, one "
        f"rank, in turns with each other; one set takes {first:.1f} ms.\n\n"
        + _lines(["K", "packed, ms", "added", "separate, ms", "added"], lines)
    )


def _memory(runs: Iterable[dict[str, Any]]) -> str:
    lines = [
        f"| {run['layout']} | {run['k']} | {run['width']} | {run['bag']} | {run['rows']:,} "
        f"| {run['needed'] / 2**20:,.0f} | {run['added'] / 2**20:,.0f} "
        f"| {run['ratio']:.3f} {'ok' if run['ratio'] <= run['goal'] else 'no'} |"
        for run in runs
    ]
    heading = ["layout", "K", "width", "bag", "rows", "needed, MiB", "added, MiB", "goal 1.1"]
    return (
        "What a process's memory grew by at the most after its imports, over weights, optimizer state "
        "and one batch's ids, outputs and output gradients.\n\n" + _lines(heading, lines)
    )


def _rates(rows: Iterable[Row], copied: float) -> str:
    lines = []
    for row in rows:
        case, cells = row["case"], []
        for part in ("forward_", ""):
            speed = rate(row, part)
            cells += [f"{row[part + 'milliseconds']:.2f}", f"{speed:,.0f}", f"{speed / copied:.0%}"]
        lines.append(
            f"| {case['width']} | {case['bag']} | {case['ids']} | {case['k']} | {row['batch']:,} "
            f"| {row.get('data_type', 'fp32')} | {PEERS[row['peer']]} | " + " | ".join(cells) + " |"
        )
    heading = ["forward, ms", "GB/s", "of a copy", "step, ms", "GB/s", "of a copy"]
    return (
        "GB/s of the least bytes a step has to move: ids, rows, outputs and their gradients once, "
        "changed weights and states read and written.\n\n"
        + _lines(["width", "bag", "ids", "K", "batch", "type", "way", *heading], lines)
    )


def _lines(heading: Sequence[str], lines: Iterable[str]) -> str:
    return "\n".join(
        ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading), *lines],
    )
