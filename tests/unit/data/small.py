"""Small data sets whose every row is known by its `key`, and readers of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe, from_dict
from prismrec.data.encode.tables import encoders_of
from prismrec.data.lanes import Share
from prismrec.data.reader import Reader
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import open_data

NUM_ITEMS = 50
COLUMNS = {
    "key": Column(kind="other"),
    "item": Column(kind="id", num_ids=NUM_ITEMS),
    "price": Column(kind="number"),
    "click": Column(kind="label"),
    "at": Column(kind="time"),
}


def table(first: int, rows: int) -> pa.Table:
    """Rows whose values follow from their key: item = key % 50, price = key / 2, every third clicked."""
    key = np.arange(first, first + rows)
    return pa.table(
        {
            "key": key,
            "item": key % NUM_ITEMS,
            "price": (key / 2).astype(np.float32),
            "click": (key % 3 == 0).astype(np.int8),
            "at": key * 10,
        }
    )


def write(directory: Path, files: list[int], group_rows: int = 7, **more: Column) -> Path:
    """Files of consecutive rows in `directory`, and the schema with `more` columns."""
    directory.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, rows in enumerate(files):
        path = directory / f"part-{number}.parquet"
        pq.write_table(table(first, rows), path, row_group_size=group_rows)
        first += rows
    DataSchema(name="small", columns={**COLUMNS, **more}).write(directory)
    return directory


def write_table(directory: Path, rows: pa.Table, **more: Column) -> Path:
    """One file with `rows`, and a schema of the common columns it has and of `more`."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, directory / "part-0.parquet", row_group_size=7)
    common = {name: column for name, column in COLUMNS.items() if name in rows.column_names}
    DataSchema(name="small", columns={**common, **more}).write(directory)
    return directory


def recipe(path: Path | str, **data: Any) -> Recipe:
    """A recipe over a small data set; `features`, `model` and `tasks` replace those sections."""
    features = {"sparse": ["item"], "dense": ["price"], "group": "key", "time": "at"}
    tasks = data.pop("tasks", [{"name": "click", "label": "click"}])
    model = data.pop("model", {"name": "dcnv2"})
    features |= data.pop("features", {})
    tables = data.pop("tables", {})
    seed = data.pop("seed", 1)
    workers = {"count": data.pop("workers", 1)}
    defaults = {"global_batch_size": 16, "lanes": 4, "order": "file", "shuffle_rows": 10}
    return from_dict(
        {
            "name": "small",
            "seed": seed,
            "data": {"path": str(path), **defaults, **data},
            "features": features,
            "embedding": {"tables": tables},
            "model": model,
            "tasks": tasks,
            "workers": workers,
        }
    )


def reader(path: Path | str, rank: int = 0, world_size: int = 1, **data: Any) -> Reader:
    """A training reader of the whole data set."""
    split = data.pop("split", "train")
    training = data.pop("training", True)
    chosen = recipe(path, **data)
    source = open_data(path)
    encoders = encoders_of(chosen, source.schema)
    return Reader(source, chosen, split, encoders, Share(rank, world_size), training)


def keys_by_step(
    path: Path, world_size: int = 1, epoch: int = 0, **data: Any
) -> list[list[list[int]]]:
    """Keys of the real rows, by step and rank."""
    ranks = [
        [
            batch.group[batch.weights[:, 0] > 0].tolist()
            for batch, _ in reader(path, rank, world_size, **data).epoch(epoch)
        ]
        for rank in range(world_size)
    ]
    return [list(step) for step in zip(*ranks, strict=True)]


def flat(steps: list[list[list[int]]]) -> list[int]:
    """All keys."""
    return [key for step in steps for rank in step for key in rank]
