"""What a request costs that gives the columns of a user once, beside one that repeats them in every row.

    python -m benchmarks.shared_columns models:/kuairand-tim@champion --data out/kuairand \
        --shared user_id watched_videos watched_long_tags --out benchmarks/results/shared_columns

From the bytes of a body to probabilities, in one process without HTTP; both ways of a number of
candidates take turns, on the same rows, with the same answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, sentence
from benchmarks.result import write
from prismrec.data.source import open_data
from prismrec.jobs.evaluate import split_tables
from prismrec.serving.http.requests import Limits
from prismrec.serving.inference import InferenceModel
from prismrec.serving.scorer import Scorer, ServedModel
from prismrec.tracking.registry import Registry

CANDIDATES = (16, 64, 256, 1024)
_WAYS = ("repeated", "shared")


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shared_columns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="as prismrec takes it")
    parser.add_argument("--data", required=True, help="the rows of requests")
    parser.add_argument("--shared", nargs="+", required=True, help="columns of the user")
    parser.add_argument("--uri", default="sqlite:///mlflow.db")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    return parser.parse_args()


def bodies(model: InferenceModel, data: str, shared: list[str], rows: int) -> dict[str, bytes]:
    """The same request in both ways: `rows` candidates for a user with lists of middling length."""
    tables = split_tables(model.recipe, open_data(data), "test", model.columns)
    table = next(each for each in tables if each.num_rows).select(list(model.columns))
    found: dict[str, list[Any]] = table.to_pydict()
    columns = {name: list(itertools.islice(itertools.cycle(v), rows)) for name, v in found.items()}
    user = {name: found[name][_middling(found, shared)] for name in shared}
    own = {name: values for name, values in columns.items() if name not in user}
    whole = own | {name: [value] * rows for name, value in user.items()}
    return {
        "repeated": json.dumps({"inputs": whole}).encode(),
        "shared": json.dumps({"inputs": own, "shared": user}).encode(),
    }


def _middling(columns: dict[str, list[Any]], shared: list[str]) -> int:
    """The row that has as many ids in the lists of the shared columns as half of the others."""
    count = len(columns[shared[0]])
    lists = [columns[name] for name in shared if any(isinstance(v, list) for v in columns[name])]
    sizes = [sum(len(values[row] or []) for values in lists) for row in range(count)]
    return sorted(range(count), key=sizes.__getitem__)[count // 2]


def measured(scorer: Scorer, made: dict[str, bytes], calls: int) -> dict[str, Any]:
    """Milliseconds of both ways, whose answers are compared first."""
    answers = {way: scorer.score([scorer.read(made[way])])[0] for way in _WAYS}
    torch.testing.assert_close(answers["shared"], answers["repeated"], atol=1e-5, rtol=0)
    taken: dict[str, list[float]] = {way: [] for way in _WAYS}
    reading: dict[str, list[float]] = {way: [] for way in _WAYS}
    for _ in range(calls):
        for way in _WAYS:
            began = time.perf_counter()
            request = scorer.read(made[way])
            read = time.perf_counter()
            scorer.score([request])
            reading[way].append((read - began) * 1e3)
            taken[way].append((time.perf_counter() - began) * 1e3)
    ratios = sorted(a / b for a, b in zip(taken["repeated"], taken["shared"], strict=True))
    return {
        "bytes": {way: len(made[way]) for way in _WAYS},
        "ms": {way: statistics.median(taken[way]) for way in _WAYS},
        "reading_ms": {way: statistics.median(reading[way]) for way in _WAYS},
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]],
    }


def markdown(document: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Columns that all candidates of a user share",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}. {document['threads']} thread. "
        "Milliseconds from a body to probabilities, the part until it is read and checked in brackets; medians "
        f"of {document['calls']} calls, both ways in turn; the ratio call by call, with its "
        "10th and 90th percentile.",
        "",
        "| candidates | body, repeated | shared | ms, repeated | shared | times as fast |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rows, each in document["cases"].items():
        low, high = each["ratio_range"]
        cells = [f"{each['bytes'][way]:,}" for way in _WAYS]
        cells += [f"{each['ms'][way]:.2f} ({each['reading_ms'][way]:.2f})" for way in _WAYS]
        lines.append(
            f"| {rows} | {' | '.join(cells)} | {each['ratio']:.2f} ({low:.2f}-{high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the page, and write it where `--out` says."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    with Registry(asked.uri).resolve(asked.model) as found:
        model = InferenceModel.load(found.path)
    scorer = Scorer(ServedModel(model, asked.model, None), Limits(body_bytes=2**28))
    document: dict[str, Any] = {
        "command": "python -m benchmarks.shared_columns " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "threads": asked.threads,
        "calls": asked.calls,
        "cases": {
            str(rows): measured(scorer, bodies(model, asked.data, asked.shared, rows), asked.calls)
            for rows in CANDIDATES
        },
    }
    write(asked.out, document, markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
