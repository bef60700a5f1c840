"""The loop's own share of a step: everything in `train()` that is outside the pipeline's step.

    python -m benchmarks.loop_share

That is the stop request, the seed, the meter, the ledger and the run log. The pipeline's step holds the wait
for data, copy, exchange, forward, backward and optimizers. The rows are those of `prismrec bench train`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.machine import machine, sentence
from benchmarks.train_data import recipe
from prismrec.data.batch import Batch
from prismrec.data.source import open_data
from prismrec.train.events import EventLog
from prismrec.train.loop import Session, train
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import process_group
from prismrec.train.run_files import RunFiles

WARM_UP = 10


class _Done(BaseException):
    """Enough steps were taken."""


def run(data: Path, precision: str, steps: int) -> tuple[float, float]:
    """Milliseconds of a step, and the share of it that is the loop's own."""
    spans: list[tuple[float, float]] = []
    plain_step = Pipeline.step

    def timed_step(self: Pipeline, batches: Iterator[Batch]) -> Any:
        if len(spans) == WARM_UP + steps:
            raise _Done
        start = time.perf_counter()
        output = plain_step(self, batches)
        spans.append((start, time.perf_counter()))
        return output

    Pipeline.step = timed_step  # type: ignore[method-assign]
    try:
        chosen = recipe(data, precision, 20)
        with TemporaryDirectory() as directory, process_group("cpu") as ranks:
            files = RunFiles(Path(directory))
            try:
                train(
                    chosen, open_data(data), Session(ranks, files, EventLog(files.events), "share")
                )
            except _Done:
                pass
    finally:
        Pipeline.step = plain_step  # type: ignore[method-assign]
    counted = spans[WARM_UP:]
    total = counted[-1][1] - counted[0][0]
    inside = sum(stop - start for start, stop in counted)
    return 1e3 * total / len(counted), (total - inside) / total


def main() -> None:
    """Measure both precisions and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT / "out/bench/train/100000-rows/data"
    parser.add_argument(
        "--data", type=Path, default=default, help="written by prismrec bench train"
    )
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    print(sentence(machine()))
    for precision in ("fp32", "bf16"):
        milliseconds, share = run(asked.data, precision, asked.steps)
        print(f"{precision}: {milliseconds:.1f} ms a step, the loop's own share {share:.2%}")


if __name__ == "__main__":
    main()
