"""The rows of the train step benchmark and the recipe that reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from prismrec.config import Recipe, from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.data.write import write_table

IDS = [f"id_{n}" for n in range(26)]
NUMBERS = [f"number_{n}" for n in range(13)]
DIM, HIDDEN, CROSS_LAYERS, BATCH = 16, (400, 400, 400), 3, 4096
NUM_BATCHES = 50


def write_rows(table_rows: int, directory: Path) -> Path:
    """A data set of 50 batches whose ids are uniform over `table_rows`, unless it is there already.

    Returns:
        The directory of the Parquet files. `rows.npz` beside it holds the same rows as arrays:
        `ids` (26, rows) int64, `numbers` (13, rows) float32, `label` (rows,) float32.
    """
    data = directory / "data"
    if (data / "schema.json").exists():
        return data
    rng = np.random.default_rng(7)
    rows = NUM_BATCHES * BATCH
    ids = rng.integers(0, table_rows, (len(IDS), rows))
    numbers = rng.normal(size=(len(NUMBERS), rows)).astype(np.float32)
    label = (rng.random(rows) < 0.25).astype(np.int8)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "rows.npz", ids=ids, numbers=numbers, label=label.astype(np.float32))
    columns = {name: Column(kind="id", num_ids=table_rows) for name in IDS}
    columns |= {name: Column(kind="number") for name in NUMBERS}
    schema = DataSchema(name="train-step", columns={**columns, "label": Column(kind="label")})
    arrays = [*ids, *numbers, label]
    write_table(data, pa.table(dict(zip(schema.columns, arrays, strict=True))), schema)
    return data


def recipe(data: Path, precision: str, log_every: int) -> Recipe:
    """DCN-v2 on those rows: 26 tables x 16, 13 numbers, 3 cross layers, 3 x 400."""
    return from_dict(
        {
            "name": "train-step",
            "data": {"path": str(data), "global_batch_size": BATCH},
            "features": {"sparse": IDS, "dense": NUMBERS},
            "embedding": {"dim": DIM},
            "model": {
                "name": "dcnv2",
                "num_cross_layers": CROSS_LAYERS,
                "hidden": list(HIDDEN),
                "norm": "none",
            },
            "tasks": [{"name": "label", "label": "label"}],
            "train": {
                "precision": precision,
                "device": "cpu",
                "epochs": 10_000,
                "log_every": log_every,
            },
        }
    )
