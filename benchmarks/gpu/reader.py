"""The same model with Parquet files as its source: what the reader delivers, and what the device makes of it.

python -m benchmarks.gpu.reader --out out/reader.json
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks.gpu.clock import synchronize
from benchmarks.gpu.dlrm import TRIAL, Shape, recipe_of, schema_of, sharded_model
from benchmarks.gpu.results import Asked, Table, asked
from prismrec.config import Recipe
from prismrec.data.batch import Batch
from prismrec.data.source import DataSource, open_data
from prismrec.data.write import write_table
from prismrec.train.feed import Splits
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import Ranks, process_group

_FULL = Shape(rows=250_000)


def main() -> None:
    """Write the files, read them, train from them."""
    run = asked(__doc__)
    shape, rows, batch = (
        run.choose(_FULL, TRIAL),
        run.choose(2_621_440, 512),
        run.choose(65_536, 32),
    )
    table = run.results.table(
        "From Parquet files",
        ["what", "rows", "seconds", "rows/s"],
        f"{shape.tables} id columns and {shape.numbers} numbers, batch {batch:,}, files in the page cache. "
        "One process reads and trains; the reader decodes on its own threads.",
    )
    with TemporaryDirectory() as directory:
        source = _written(Path(directory) / "data", shape, rows)
        recipe = recipe_of(shape, batch, run.device)
        data = recipe.data.model_copy(update={"path": source.path})
        recipe = recipe.model_copy(update={"data": data})
        _scan(run, table, source, rows)
        with process_group(run.device) as ranks:
            _read(run, table, Splits(recipe, source, ranks), rows)
            for is_pinned in (False, True) if run.device == "cuda" else (False,):
                _train(run, table, (recipe, source, ranks), is_pinned)


def _written(out: Path, shape: Shape, rows: int) -> DataSource:
    random, schema = np.random.default_rng(5), schema_of(shape)
    columns = {name: random.integers(0, shape.rows, rows) for name in shape.ids}
    for n in range(shape.numbers):
        columns[f"number_{n}"] = random.normal(size=rows).astype(np.float32)
    columns["label"] = (random.random(rows) < 0.25).astype(np.int8)
    write_table(out, pa.table({name: columns[name] for name in schema.columns}), schema)
    return open_data(out)


def _scan(run: Asked, table: Table, source: DataSource, rows: int) -> None:
    for _ in range(2):  # the first pass brings the files into the page cache
        start = time.perf_counter()
        files = sorted(Path(source.path).rglob("*.parquet"))
        scanned = sum(batch.num_rows for batch in ds.dataset(files).to_batches())
        seconds = time.perf_counter() - start
    if scanned != rows:
        raise RuntimeError(f"{scanned} of {rows} rows were scanned")
    _put(run, table, "plain Arrow scan of all columns", rows, seconds)


def _read(run: Asked, table: Table, splits: Splits, rows: int) -> None:
    start = time.perf_counter()
    read = sum(batch.num_rows for batch, _ in splits.train.epoch())
    seconds = time.perf_counter() - start
    if read < rows:
        raise RuntimeError(f"{read} of {rows} rows were read")
    _put(run, table, "the reader alone, to batches", rows, seconds)


def _train(
    run: Asked, table: Table, what: tuple[Recipe, DataSource, Ranks], is_pinned: bool
) -> None:
    recipe, source, ranks = what
    splits = Splits(recipe, source, ranks)
    sharded = sharded_model(recipe, schema_of(_shape(run)), ranks, is_bf16=True)
    pipeline, stream = Pipeline(sharded), _batches(splits, is_pinned)
    steps, warm_up = splits.train.num_steps, max(2, splits.train.num_steps // 8)
    for _ in range(warm_up):
        pipeline.step(stream)
    synchronize(run.device)
    start = time.perf_counter()
    for _ in range(steps):
        pipeline.step(stream)
    synchronize(run.device)
    seconds = time.perf_counter() - start
    pipeline.close()
    name = "reader and training step" + (", variant: batches pinned" if is_pinned else "")
    rows = steps * recipe.data.global_batch_size
    _put(run, table, name, rows, seconds)
    run.results.fact(name, rows / seconds)


def _shape(run: Asked) -> Shape:
    return run.choose(_FULL, TRIAL)


def _batches(splits: Splits, is_pinned: bool) -> Iterator[Batch]:
    epoch = 0
    while True:
        for batch, _ in splits.train.epoch(epoch):
            yield batch.pin_memory() if is_pinned else batch
        epoch += 1


def _put(run: Asked, table: Table, what: str, rows: int, seconds: float) -> None:
    run.results.add(table, what, rows, round(seconds, 3), round(rows / seconds))


if __name__ == "__main__":
    main()
