"""Streams of small files, runs over them in this process or on ranks, and the rows that they trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe
from tests.helpers.runs import Recorder, make_recipe

WINDOW = 100


def rows_of(data: Path) -> pa.Table:
    """The 327 training rows of the small data set, at the times 0, 2, 4, ...; `key` numbers them."""
    table = pq.read_table(data / "0-train.parquet")
    return at_times(table, range(0, 2 * table.num_rows, 2))


def at_times(rows: pa.Table, times: Sequence[int]) -> pa.Table:
    """Rows that happened at other times."""
    return rows.set_column(rows.column_names.index("at"), "at", pa.array(times, pa.int64()))


def begin_stream(directory: Path, like: Path) -> Path:
    """A directory with the schema of another data set and no row."""
    directory.mkdir(parents=True)
    shutil.copy(like / "schema.json", directory)
    return directory


def deliver(stream: Path, name: str, rows: pa.Table) -> None:
    """Let a file arrive, as a writer does: under another name first."""
    scratch = stream / f".{name}.tmp"
    pq.write_table(rows, scratch, row_group_size=20)
    scratch.rename(stream / f"{name}.parquet")


def stream_recipe(stream: Path, *overrides: str) -> Recipe:
    """The small recipe over a stream that ends a moment after its last file."""
    return make_recipe(
        stream,
        "data.splits={train = []}",
        "data.order=time",
        "train={device = 'cpu', precision = 'fp32', log_every = 1}",
        f"online={{window = {WINDOW}, idle_s = 0.01, poll_s = 0.01}}",
        *overrides,
    )


@dataclass(frozen=True, slots=True)
class OnlineStart:
    """One start of a run over a stream.

    Args:
        recipe: what is trained.
        directory: the run's; where one was already, this start goes on with it.
        attempt: differs at every start in a directory.
        stop_at: step after which the run is asked to stop, as a signal asks.
    """

    recipe: Recipe
    directory: Path
    attempt: str = "first"
    stop_at: int | None = None


@dataclass(slots=True)
class Streamed:
    """What one start came to, as rank 0 tells it.

    Args:
        outcome: see `OnlineOutcome`.
        log: every metric by name, then by step.
    """

    outcome: Any
    log: dict[str, dict[int, float]]


class _StoppingRecorder(Recorder):
    """A recorder that asks for a stop when the loss of some step is recorded."""

    stop_file: Path
    stop_at: int | None = None

    def log_metrics(self, metrics: Any, step: int) -> None:
        """Keep them, and ask."""
        super().log_metrics(metrics, step)
        if step == self.stop_at and "train/loss" in metrics:
            self.stop_file.write_text("SIGTERM")


def stream_each(starts: Sequence[OnlineStart]) -> list[Streamed]:
    """Train every start, one after another.

    Collective: every rank calls it.
    """
    return [stream_one(start) for start in starts]


def stream_one(start: OnlineStart) -> Streamed:
    """Train one start on this rank.

    Collective: every rank calls it.
    """
    from prismrec.train.loop import Session
    from prismrec.train.online import train_online
    from prismrec.train.process_group import process_group
    from prismrec.train.run_files import RunFiles

    start.directory.mkdir(parents=True, exist_ok=True)
    record = _StoppingRecorder()
    with process_group("cpu") as ranks:
        session = Session(ranks, RunFiles(start.directory), record, start.attempt)
        record.stop_file, record.stop_at = session.stop_files()[1], start.stop_at
        outcome = train_online(start.recipe, session)
    return Streamed(outcome, record.metrics)


def keys_trained(directory: Path, checkpoint: Path, recipe: Recipe) -> list[list[int]]:
    """Keys of the rows that the ledger of a checkpoint names, by slice, in the order of the record."""
    from prismrec.checkpoint.manifest import read_manifest
    from prismrec.data.arrivals import Arrivals
    from prismrec.data.encode.tables import encoders_of
    from prismrec.data.ledger import Ledger
    from prismrec.data.lookup import raw_rows
    from prismrec.data.reader import Reader
    from prismrec.data.windows import Slice
    from prismrec.train.online import windowed
    from prismrec.train.periods import PeriodFiles

    assert recipe.features.time is not None
    arrivals = Arrivals(recipe.data.path, recipe.features.time)
    encoders = encoders_of(recipe, arrivals.schema)
    ledger = Ledger.from_json(read_manifest(checkpoint).extra["ledger"])
    keys = []
    for line in PeriodFiles(directory).read_slices():
        part = Slice(line["kind"], line["start"], line["stop"], line["files"])
        source = arrivals.source(part.files)
        reader = Reader(source, windowed(recipe, part), "train", encoders, training=True)
        places = [
            reader.rows_at(line["slice"], lane, start, stop)
            for lane, ranges in enumerate(ledger.ranges(line["slice"]))
            for start, stop in ranges
        ]
        files, groups, rows = (np.concatenate(part) for part in zip(*places, strict=True))
        table = raw_rows(source, (files, groups, rows), ["key"])
        keys.append(sorted(table.column("key").to_pylist()))
    return keys


def slices_of(directory: Path) -> list[dict[str, Any]]:
    """The record of a run."""
    return [json.loads(line) for line in (directory / "windows.jsonl").read_text().splitlines()]
