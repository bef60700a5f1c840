"""Runs of `train` on gloo ranks, over a small synthetic data set of which the tests know every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe, from_dict
from prismrec.data.schema import Column, DataSchema
from tests.helpers.ranks import run_ranks

NUM_USERS, NUM_ITEMS, NUM_TAGS = 40, 25, 12
FOLDS = {"train": 0, "valid": 1, "test": 2}
ROWS = {"train": 327, "valid": 64, "test": 75}
"""Rows of each split; no multiple of a batch, so that the last step of an epoch is padded."""
BATCH, LANES = 16, 4

_COLUMNS = {
    "key": Column(kind="other"),
    "fold": Column(kind="other"),
    "user": Column(kind="id", num_ids=NUM_USERS),
    "item": Column(kind="id", num_ids=NUM_ITEMS),
    "tags": Column(kind="ids", num_ids=NUM_TAGS),
    "tag_weights": Column(kind="numbers"),
    "seen": Column(kind="ids", num_ids=NUM_ITEMS),
    "tab": Column(kind="id", num_ids=3),
    "x": Column(kind="number"),
    "y": Column(kind="number"),
    "click": Column(kind="label"),
    "buy": Column(kind="label"),
    "at": Column(kind="time"),
}

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "data": {
        "global_batch_size": BATCH,
        "lanes": LANES,
        "shuffle_rows": 32,
        "splits": {split: [f"fold == {number}"] for split, number in FOLDS.items()},
    },
    "features": {
        "sparse": [
            "user",
            "item",
            {"name": "tags", "weights": "tag_weights"},
            {"name": "seen", "table": "item"},
        ],
        "dense": ["x", "y"],
        "group": "user",
        "time": "at",
    },
    "embedding": {
        "sets": [
            {"name": "wide", "dim": 8, "init_std": 0.1},
            {"name": "narrow", "dim": 4, "init_std": 0.1},
        ],
        "optimizer": {"learning_rate": 0.02},
    },
    "model": {"name": "dcnv2", "num_cross_layers": 2, "hidden": [16, 8]},
    "tasks": [{"name": "click", "label": "click"}, {"name": "buy", "label": "buy", "weight": 0.5}],
    "train": {"device": "cpu", "precision": "fp32", "log_every": 1, "epochs": 2, "steps": 20},
    "evaluate": {"bootstrap": 0, "every_steps": 1000},
    "checkpoint": {"keep_best": False},
}
"""The recipe of these tests; each says what it changes as `section.key=value`."""


def write_rows(directory: Path, rows: Mapping[str, int] | None = None, seed: int = 0) -> Path:
    """Write the data set: missing, negative and too large ids, weighted bags, rare and null labels.

    `buy` has a label in one row of twelve; `key` numbers the rows.
    """
    directory.mkdir(parents=True)
    first = 0
    for split, count in (rows or ROWS).items():
        table = _table(first, count, FOLDS[split], np.random.default_rng([seed, FOLDS[split]]))
        pq.write_table(table, directory / f"{FOLDS[split]}-{split}.parquet", row_group_size=50)
        first += count
    DataSchema(name="small", columns=_COLUMNS).write(directory)
    return directory


def make_recipe(data: Path, *overrides: str) -> Recipe:
    """The recipe over a data set, with `section.key=value` changes."""
    return from_dict(RECIPE, [f"data.path='{data}'", *overrides])


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run.

    Args:
        recipe: what is trained.
        directory: the run's; where one was already, this start goes on with it.
        attempt: differs at every start in a directory.
    """

    recipe: Recipe
    directory: Path
    attempt: str = "first"


@dataclass(slots=True)
class Trained:
    """What one start came to, as rank 0 tells it.

    Args:
        checkpoint: the one to register.
        steps: steps done, those of earlier starts included.
        stopped_by: what ended it early, or "".
        metrics: those of the test rows.
        log: every metric by name, then by step.
        parameters: what was told at the start.
    """

    checkpoint: Path
    steps: int
    stopped_by: str
    metrics: dict[str, float]
    log: dict[str, dict[int, float]]
    parameters: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        """The loss of every step of this start, over all ranks."""
        return list(self.log["train/loss"].values())


def train_on(world_size: int, starts: Sequence[Start], timeout_s: float = 240) -> list[Trained]:
    """Train every start, one after another, on ranks that live as long as the call."""
    results: list[Trained] = run_ranks(train_each, world_size, starts, timeout_s=timeout_s)[0]
    return results


def alone(starts: Sequence[Start]) -> list[Trained]:
    """Train every start as the only rank, in this process, on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_each(starts)
    finally:
        torch.set_num_threads(threads)


def rows_seen(checkpoint: Path, recipe: Recipe) -> dict[int, list[int]]:
    """Keys of the rows that the ledger of a checkpoint names, by epoch."""
    from prismrec.checkpoint.manifest import read_manifest
    from prismrec.data.encode.tables import encoders_of
    from prismrec.data.ledger import Ledger
    from prismrec.data.lookup import raw_rows
    from prismrec.data.reader import Reader
    from prismrec.data.source import open_data

    source = open_data(recipe.data.path)
    encoders = encoders_of(recipe, source.schema)
    reader = Reader(source, recipe, "train", encoders, training=True)
    ledger = Ledger.from_json(read_manifest(checkpoint).extra["ledger"])
    keys: dict[int, list[int]] = {}
    for epoch in ledger.epochs:
        places = [
            reader.rows_at(epoch, lane, start, stop)
            for lane, ranges in enumerate(ledger.ranges(epoch))
            for start, stop in ranges
        ]
        files, groups, rows = (np.concatenate(part) for part in zip(*places, strict=True))
        keys[epoch] = raw_rows(source, (files, groups, rows), ["key"]).column("key").to_pylist()
    return keys


def train_each(starts: Sequence[Start]) -> list[Trained]:
    """Train on this rank.

    Collective: every rank calls it.
    """
    return [train_one(start) for start in starts]


def train_one(start: Start) -> Trained:
    """Train one start on this rank.

    Collective: every rank calls it.
    """
    from prismrec.data.source import open_data
    from prismrec.train.loop import Session, train
    from prismrec.train.process_group import process_group, resolve_device
    from prismrec.train.run_files import RunFiles

    start.directory.mkdir(parents=True, exist_ok=True)
    record = Recorder()
    with process_group(resolve_device(start.recipe.train.device)) as ranks:
        session = Session(ranks, RunFiles(start.directory), record, start.attempt)
        outcome = train(start.recipe, open_data(start.recipe.data.path), session)
    return Trained(
        outcome.checkpoint,
        outcome.steps,
        outcome.stopped_by,
        outcome.metrics,
        record.metrics,
        record.parameters,
    )


@dataclass
class Recorder:
    """A tracker that keeps everything.

    Args:
        metrics: every metric by name, then by step.
        parameters: facts of the run.
    """

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Keep them."""
        self.parameters.update(parameters)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep them."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, {})[step] = value

    def log_file(self, path: Path, folder: str = "") -> None:
        """A path is not a number."""

    def close(self) -> None:
        """Nothing waits."""


def _table(first: int, rows: int, fold: int, random: np.random.Generator) -> pa.Table:
    key = np.arange(first, first + rows)
    user, item = random.integers(0, NUM_USERS, rows), random.integers(0, NUM_ITEMS, rows)
    x = random.normal(size=rows)
    odds = ((user * 7) % 11 - 5) / 3 + ((item * 5) % 7 - 3) / 2 + 0.5 * x - 0.5
    click = random.random(rows) < 1 / (1 + np.exp(-odds))
    buy = random.random(rows) < 0.3 + 0.4 * click
    missing = random.random((4, rows)) < 0.08
    missing_tags, tags = random.random(rows) < 0.05, _bags(random, rows, NUM_TAGS)
    columns = {
        "key": pa.array(key),
        "fold": pa.array(np.full(rows, fold)),
        "user": pa.array(user, mask=missing[0]),
        "item": pa.array(np.where(missing[1], random.choice([-3, NUM_ITEMS], rows), item)),
        "tags": pa.array([None if m else b for m, b in zip(missing_tags, tags, strict=True)]),
        "tag_weights": pa.array(
            [
                None if m else random.uniform(0.5, 2, len(b)).astype(np.float32)
                for m, b in zip(missing_tags, tags, strict=True)
            ]
        ),
        "seen": pa.array(_bags(random, rows, NUM_ITEMS)),
        "tab": pa.array(key % 3),
        "x": pa.array(x.astype(np.float32), mask=missing[2]),
        "y": pa.array(random.normal(size=rows), mask=missing[3]),
        "click": pa.array(click.astype(np.int8)),
        "buy": pa.array(buy.astype(np.int8), mask=key % 12 != 5),
        "at": pa.array(key * 10),
    }
    return pa.table(columns)


def _bags(random: np.random.Generator, rows: int, num_ids: int) -> list[np.ndarray[Any, Any]]:
    return [random.integers(0, num_ids, size) for size in random.integers(0, 4, rows)]
