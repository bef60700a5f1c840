"""What a look at collapse costs: the spectrum of a large table, and a probe's share of a run.

    python -m benchmarks.spectra --data out/kuairand --out benchmarks/results/spectra

The table is drawn, its spectrum taken as a run would take it, repeatedly; the memory on top of it is
the largest resident size seen meanwhile. The share of training is that of the probe at the default
cadence, once an epoch, in a run of one epoch of KuaiRand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.channel import ROOT
from benchmarks.machine import machine, sentence
from benchmarks.result import write
from prismrec.analysis.collapse import CollapseProbe
from prismrec.analysis.table_spectra import table_spectra
from prismrec.config import load
from prismrec.data.source import open_data
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.models import spec_of
from prismrec.train.events import EventLog
from prismrec.train.loop import Session, train
from prismrec.train.process_group import process_group
from prismrec.train.run_files import RunFiles

RECIPE = ROOT / "jobs" / "recipes" / "kuairand" / "me_dcnv2.toml"


class Peak:
    """The largest resident size of this process while it is entered, sampled every 2 ms."""

    def __enter__(self) -> Peak:
        self._process, self._ended = psutil.Process(), threading.Event()
        self.before = self.bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss)


def large_table(spec: EmbeddingSpec, rows: int, width: int, repeats: int) -> dict[str, Any]:
    """Seconds and memory of the spectrum of one fp32 table with its accumulators."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, width, generator=generator)
    accumulator = torch.ones(rows, width)
    one_set = replace(spec.sets[0], dim=width)
    table = replace(spec.tables[0], rows=rows)
    alone = replace(spec, sets=(one_set,), tables=(table,), fields=table.features)
    shard = LocalShard(
        table.name, one_set.name, rows, width, 0, 0, weight, {"accumulator": accumulator}
    )
    seconds, above = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        with Peak() as peak:
            (found,) = table_spectra([shard], alone).values()
        seconds.append(time.perf_counter() - started)
        above.append((peak.bytes - peak.before) / weight.nbytes)
    return {
        "rows": rows,
        "width": width,
        "bytes": weight.nbytes,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "memory above, share of the table": above,
        "information abundance": found.information_abundance,
    }


def share_of_training(data: Path, repeats: int) -> dict[str, Any]:
    """Seconds in the probe and in all of a run of one epoch, a few times."""
    recipe = load(RECIPE, [f"data.path='{data}'", "train.device='cpu'", "train.precision='fp32'"])
    runs = []
    for _ in range(repeats):
        spent = []
        probe = CollapseProbe(recipe.evaluate.collapse_below)

        def timed(*arguments: Any, probe: CollapseProbe = probe, spent: list[float] = spent) -> Any:
            started = time.perf_counter()
            metrics = probe(*arguments)
            spent.append(time.perf_counter() - started)
            return metrics

        with tempfile.TemporaryDirectory() as directory, process_group("cpu") as ranks:
            files = RunFiles(Path(directory))
            session = Session(ranks, files, EventLog(files.events), "first", timed)
            started = time.perf_counter()
            outcome = train(recipe, open_data(str(data)), session)
            runs.append(
                {
                    "seconds": time.perf_counter() - started,
                    "probe": sum(spent),
                    "looks": len(spent),
                    "steps": outcome.steps,
                }
            )
    return {"recipe": RECIPE.stem, "runs": runs}


def page(document: dict[str, Any]) -> str:
    """The results as a page."""
    table, training = document["table"], document["training"]
    above = table["memory above, share of the table"]
    shares = [run["probe"] / run["seconds"] for run in training["runs"]]
    lines = [
        "# What a look at collapse costs",
        "",
        f"`{document['command']}`, {sentence(document['machine'])}.",
        "",
        "| | median | range | goal |",
        "| --- | --- | --- | --- |",
        f"| spectrum of a table of {table['rows']:,} x {table['width']} fp32 with its accumulators, "
        f"{table['threads']} threads, s | {statistics.median(table['seconds']):.1f} | "
        f"{min(table['seconds']):.1f}-{max(table['seconds']):.1f} | under 60 |",
        f"| memory on top of it, share of the table's {table['bytes'] / 1e9:.2f} GB | "
        f"{statistics.median(above):.3f} | {min(above):.3f}-{max(above):.3f} | under 0.2 |",
        f"| share of a run spent on it, `kuairand/{training['recipe']}`, {training['runs'][0]['steps']:,} "
        f"steps, {training['runs'][0]['looks']} look(s) | {statistics.median(shares):.2%} | "
        f"{min(shares):.2%}-{max(shares):.2%} | at most 2 % |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, then write `OUT.json` and `OUT.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("out/kuairand"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    data = asked.data.resolve()
    spec = spec_of(load(RECIPE, [f"data.path='{data}'"]), open_data(str(data)).schema)
    document = {
        "command": f"python -m benchmarks.spectra --rows {asked.rows} --width {asked.width} "
        f"--repeats {asked.repeats} --out {asked.out}",
        "machine": machine(),
        "table": large_table(spec, asked.rows, asked.width, asked.repeats),
        "training": share_of_training(data, asked.repeats),
    }
    write(asked.out, document, page(document))
    print(page(document))


if __name__ == "__main__":
    main()
