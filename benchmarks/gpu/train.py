"""Samples per second of the DCN-v2 of TorchRec's DLRM example, through the package's own model and pipeline.

    python -m benchmarks.gpu.train --out out/train.json

Ids are in page-locked host memory already; what a reader of files delivers is another part. Published for
the same model, by others: 901,120 samples/s on eight A100.
"""

from __future__ import annotations

import itertools

import torch

from benchmarks.gpu.clock import timed
from benchmarks.gpu.dlrm import TRIAL, Shape, batches, recipe_of, schema_of, sharded_model
from benchmarks.gpu.results import Asked, Table, asked
from benchmarks.gpu.where import KINDS, profiled
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import process_group
from prismrec.train.sharding import ShardedModel

GOAL = 1_000_000
"""Samples per second wanted on one H200."""
PUBLISHED = 901_120
_TABLE_BYTES = 100 << 30
_ROW_BYTES = 8 * 26 * 128
_COPIES = 8
"""Batches that are used in turn."""


def largest_shape() -> Shape:
    """Tables of 100 GiB with their Adagrad state, or of 70 % of a smaller device's memory."""
    room = torch.cuda.get_device_properties(0).total_memory
    return Shape(rows=min(_TABLE_BYTES, int(0.7 * room)) // _ROW_BYTES - 1)


def main() -> None:
    """Measure every batch size and kind of ids on one model."""
    run = asked(__doc__)
    shape = largest_shape() if run.is_full else TRIAL
    sizes = run.choose((65_536, 16_384), (64, 32))
    columns = ["batch", "ids", "ms (range)", "samples/s", "of 8 x A100, published"]
    speeds = run.results.table(
        "Samples per second, DCN-v2",
        columns,
        f"{shape.tables} tables x {shape.rows:,} rows x {shape.dim}, {shape.table_bytes / 2**30:.1f} GiB with "
        "Adagrad's state, element-wise; bf16 autocast, fused Adam, TrainPipelineSparseDist.",
    )
    parts = run.results.table(
        "Where a step goes",
        ["batch", "ids", *(kind for kind, _ in KINDS), "busy", "wall"],
        "Milliseconds by kind of kernel, with the profiler on. Streams overlap, so that kinds can add up to "
        "more than `busy`, in which at least one kernel runs; `wall` less `busy` is what the device waits.",
    )
    recipe = recipe_of(shape, sizes[0], run.device)
    with process_group(run.device) as ranks:
        sharded = sharded_model(recipe, schema_of(shape), ranks, is_bf16=True)
        for size, ids in itertools.product(sizes, ("random", "zipf")):
            _measure(run, sharded, shape, (size, ids), (speeds, parts))


def _measure(
    run: Asked,
    sharded: ShardedModel,
    shape: Shape,
    case: tuple[int, str],
    tables: tuple[Table, Table],
) -> None:
    size, ids = case
    made = batches(shape, size, ids, _COPIES, is_pinned=run.device == "cuda")
    stream, pipeline = itertools.cycle(made), Pipeline(sharded)
    calls = run.choose(20, 2)
    spread = timed(lambda: pipeline.step(stream), run.device, calls)
    speed = 1e3 * size / spread.median
    cells = (size, ids, spread.text(), round(speed), round(speed / PUBLISHED, 3))
    run.results.add(tables[0], *cells)
    times = profiled(lambda: pipeline.step(stream), run.device, run.choose(5, 1))
    of_kinds = [round(times.get(kind, 0.0), 3) for kind, _ in KINDS]
    busy, wall = round(times["busy"], 3), round(times["wall"], 3)
    run.results.add(tables[1], size, ids, *of_kinds, busy, wall)
    pipeline.close()
    run.results.fact(f"samples/s, {size}, {ids}", speed)
    if run.is_full and size == 65_536:
        run.results.goal(f"samples/s, DCN-v2, batch {size:,}, {ids} ids", GOAL, round(speed))


if __name__ == "__main__":
    main()
