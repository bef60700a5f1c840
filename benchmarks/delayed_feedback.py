"""Conversions that come late: what each way of waiting for them costs, on a world whose truth is known.

    python -m benchmarks.delayed_feedback --seeds 1 2 3

A synthetic world's finished views convert after delays whose law is known (exponential, by category). The
log is turned into what a stream would have shown under each rule, a model is trained on it day by day with
`train_online`, and after each day it is asked about the views of the next one, whose final labels and true
probabilities are known here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.channel import ROOT
from benchmarks.fidelity.page import MARK, kept_text
from benchmarks.fidelity.training import Record
from benchmarks.machine import machine, sentence
from prismrec.checkpoint.directory import checkpoints
from prismrec.cli.output import quiet_libraries
from prismrec.config import Recipe, from_dict
from prismrec.data.delayed import LogColumns, Waiting, emission_schema, emissions
from prismrec.data.schema import Column, DataSchema
from prismrec.data.world import write_world
from prismrec.data.world_truth import WorldOptions
from prismrec.data.write import write_table
from prismrec.jobs.publish import bundle_of_checkpoint
from prismrec.serving.inference import InferenceModel
from prismrec.train.loop import Session
from prismrec.train.metrics.functions import auc
from prismrec.train.online import train_online
from prismrec.train.process_group import process_group
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles

DAY, HOUR = 86_400, 3_600
DAYS, FIRST_TEST = 14, 7
WAIT, ATTRIBUTION = 6 * HOUR, 3 * DAY
COLUMNS = LogColumns("time", "conversion_delay", "converted")
FEATURES = ("user_id", "item_id", "category", "advertiser", "city", "device", "hour")
OUT = ROOT / "benchmarks/results/delayed_feedback.md"


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn from conversions that come late.

    Args:
        name: on the page.
        rule: when rows are emitted.
        loss: of the task.
        heads: further tasks that watch the delays.
    """

    name: str
    rule: str
    loss: Any = "bce"
    heads: tuple[str, ...] = ()


METHODS = (
    Method("oracle: final labels at once", "oracle"),
    Method("wait 6 h, late ones are lost", "wait"),
    Method("wait 3 days, for all of them", "matured"),
    Method("copies, uncorrected", "copies"),
    Method("FNW", "copies", {"name": "fnw"}),
    Method("FNC", "copies", {"name": "fnc"}),
    Method(
        "ES-DFM",
        "late_copies",
        {"name": "es_dfm", "late": "late", "real_negative": "real_negative"},
        ("late", "real_negative"),
    ),
    Method("DEFER", "real_negatives", {"name": "defer", "late": "late"}, ("late",)),
)


def main() -> None:
    """Run every method and seed, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=240_000, help="views of the world")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries(verbose=False)
    found: dict[str, list[dict[str, float]]] = {method.name: [] for method in METHODS}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            log, schema = finished_views(Path(scratch), options.rows, seed)
            for method in METHODS:
                began = time.perf_counter()
                numbers = measure(method, log, schema, Path(scratch), seed)
                found[method.name].append(numbers)
                shown = json.dumps({k: round(v, 4) for k, v in numbers.items()})
                print(
                    f"{seed} {method.name}: {shown} {time.perf_counter() - began:.0f} s", flush=True
                )
    seeds = " ".join(map(str, options.seeds))
    command = f"python -m benchmarks.delayed_feedback --seeds {seeds} --rows {options.rows}"
    OUT.write_text(page(found, command))


def finished_views(scratch: Path, rows: int, seed: int) -> tuple[pa.Table, DataSchema]:
    """The views that were finished, which are what may convert, with their true probability.

    A conversion counts within `ATTRIBUTION`, so the truth is that of coming within it: the delay is
    exponential with the category's mean.
    """
    directory = scratch / "world"
    write_world(directory, rows, DAYS, seed, WorldOptions())
    log = pa.concat_tables(pq.read_table(each) for each in sorted(directory.glob("*.parquet")))
    log = log.filter(pc.equal(log["finish"], 1)).select(
        [*FEATURES, "time", "day", "conversion_delay", "p_conversion_given_finish"]
    )
    truth = pq.read_table(directory / "_truth" / "categories.parquet")
    means = dict(zip(truth["category"].to_pylist(), truth["mean_delay_s"].to_pylist(), strict=True))
    mean = np.array([means[each] for each in log["category"].to_pylist()])
    p = log["p_conversion_given_finish"].to_numpy() * -np.expm1(-ATTRIBUTION / mean)
    log = log.drop_columns(["p_conversion_given_finish"]).append_column("p_true", pa.array(p))
    schema = DataSchema.parse((directory / "schema.json").read_text(), "the world")
    kept = {name: schema.columns[name] for name in log.column_names if name in schema.columns}
    return log, DataSchema(name="views", columns=kept | {"p_true": Column(kind="other")})


def measure(
    method: Method, log: pa.Table, schema: DataSchema, scratch: Path, seed: int
) -> dict[str, float]:
    """Train on what the rule shows, and ask about every next day.

    Returns:
        Means over the days: `auc`, `logloss` and `pcoc` against the final labels, `gap`, what the cross-entropy
        against the true probabilities is above their own, and `rows` that were trained on.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        stream, run = Path(place) / "stream", Path(place) / "run"
        rows = shown(method, log)
        write_table(stream, rows, emission_schema(schema, COLUMNS), rows_per_group=4096)
        run.mkdir()
        with library_output(run / "log", verbose=False), process_group("cpu") as ranks:
            recipe = recipe_of(method, stream, seed)
            train_online(recipe, Session(ranks, RunFiles(run), Record(), "bench"))
        days = []
        for path, manifest in checkpoints(run / "checkpoints"):
            start = manifest.extra["beside"]["start"]
            if start % DAY == 0 and FIRST_TEST <= start // DAY < DAYS:
                model = bundle_of_checkpoint(path, Path(place) / f"model-{start}")
                days.append(_asked(InferenceModel.load(model), log, start // DAY))
    means = {name: statistics.mean(day[name] for day in days) for name in days[0]}
    return means | {"rows": float(rows.num_rows), "days": float(len(days))}


def shown(method: Method, log: pa.Table) -> pa.Table:
    """What the stream shows by the end of the log."""
    if method.rule == "matured":
        late = Waiting(ATTRIBUTION, ATTRIBUTION + 1, DAYS * DAY)
        delay = log["conversion_delay"].cast(pa.int64())
        counts = pc.less_equal(delay, ATTRIBUTION)
        kept = pc.if_else(counts, delay, pa.scalar(None, pa.int64()))
        at = log.column_names.index("conversion_delay")
        return emissions(log.set_column(at, "conversion_delay", kept), "wait", COLUMNS, late)
    return emissions(log, method.rule, COLUMNS, Waiting(WAIT, ATTRIBUTION, DAYS * DAY))


def recipe_of(method: Method, stream: Path, seed: int) -> Recipe:
    """The same small model for every method."""
    tasks = [{"name": "converted", "label": "converted", "loss": method.loss}]
    tasks += [{"name": head, "label": head} for head in method.heads]
    return from_dict(
        {
            "name": "delayed",
            "seed": seed,
            "data": {
                "path": str(stream),
                "order": "time",
                "global_batch_size": 256,
                "lanes": 1,
            },
            "features": {"sparse": list(FEATURES), "time": "time"},
            "embedding": {"dim": 8, "optimizer": {"learning_rate": 0.02}},
            "model": {"name": "dcnv2", "hidden": [32]},
            "tasks": tasks,
            "train": {"precision": "fp32", "device": "cpu", "log_every": 100_000},
            "evaluate": {"collapse_below": 0.0},
            "checkpoint": {"keep_last": 100},
            "online": {"window": DAY, "idle_s": 0.01, "poll_s": 0.01, "publish_every": 0},
        }
    )


def _asked(model: InferenceModel, log: pa.Table, day: int) -> dict[str, float]:
    """What the model says of a day's views."""
    rows = log.filter(pc.equal(log["day"], day))
    columns = {name: rows[name].combine_chunks() for name in FEATURES}
    p = torch.sigmoid(model.predict_logits(columns)[:, 0].double()).numpy()
    delay = pc.fill_null(rows["conversion_delay"].cast(pa.int64()), ATTRIBUTION + 1).to_numpy()
    y = (delay <= ATTRIBUTION).astype(np.float64)
    truth = rows["p_true"].to_numpy()
    return {
        "auc": float(auc(p, y)),
        "best_auc": float(auc(truth, y)),
        "logloss": _cross_entropy(p, y),
        "gap": _cross_entropy(p, truth) - _cross_entropy(truth, truth),
        "pcoc": float(p.sum() / truth.sum()),
    }


def _cross_entropy(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())


def page(found: dict[str, list[dict[str, float]]], command: str) -> str:
    """The page, with what was written by hand on the one before."""
    columns = (("auc", 4), ("logloss", 4), ("gap", 4), ("pcoc", 3))
    lines = [
        "# Conversions that come late",
        "",
        f"`{command}`, {sentence(machine())}, one core, fp32. Means over the seeds "
        "± their standard deviation.",
        "",
        "Views of the synthetic world that were finished convert after exponential delays whose mean is "
        f"the category's, 6 to 72 hours; a conversion counts within {ATTRIBUTION // DAY} days, the waiting "
        f"window is {WAIT // HOUR} hours. Trained day by day in the order of emission; after each of the days "
        f"{FIRST_TEST - 1} to {DAYS - 2} asked about the views of the day that follows, with their final "
        "labels. `gap` is the cross-entropy against the true probabilities above theirs, in nats; "
        "`calibration` is the sum of predictions over that of the true probabilities. The same DCN-v2 for "
        "all; the seed draws world and weights.",
        "",
        "| method | AUC | LogLoss | gap | calibration | rows trained on |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        cells = [_cell([run[key] for run in runs], digits) for key, digits in columns]
        rows = f"{statistics.mean(run['rows'] for run in runs):,.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {rows} |")
    best = _cell([run["best_auc"] for runs in found.values() for run in runs], 4)
    lines += ["", f"AUC of the true probabilities: {best}.", "", MARK, ""]
    kept = kept_text(OUT).strip()
    return "\n".join(lines) + (kept + "\n" if kept else "")


def _cell(values: Sequence[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
