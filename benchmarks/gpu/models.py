"""Several sets and the production recipe beside a model of one set: samples per second.

    python -m benchmarks.gpu.models --out out/models.json

The first models share 26 tables and drawn ids. The others are recipes of KuaiRand on made-up rows, read
into host memory before they are measured.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.channel import ROOT
from benchmarks.gpu.clock import timed
from benchmarks.gpu.dlrm import TRIAL, Shape, batches, recipe_of, schema_of, sharded_model
from benchmarks.gpu.results import Asked, Table, asked
from prismrec.config import Recipe, load
from prismrec.data.batch import Batch
from prismrec.data.fit_numbers import fit_numbers, write_statistics
from prismrec.data.schema import DataSchema
from prismrec.data.source import open_data
from prismrec.train.feed import Splits
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import Ranks, process_group
from tests.recipes.codes import drawn_codes
from tests.recipes.kuairand import Sizes, write_small_kuairand
from tests.recipes.vectors import with_drawn_vectors

_FULL = Shape(rows=250_000)
_RECIPES = ROOT / "jobs" / "recipes"
_KUAIRAND = ("kuairand/dcnv2.toml", "kuairand/me_dcnv2.toml", "kuairand_production.toml")
_SETS = ((1, 128), (4, 32), (4, 128))
"""Number of sets and their width: one set, four of the same width together, four as wide each."""


def main() -> None:
    """Measure every model; exit code 1 if one failed."""
    run = asked(__doc__)
    sizes = run.choose((65_536, 16_384), (32,))
    columns = ["model", "batch", "ms (range)", "samples/s", "of one set"]
    note = "The package's pipeline, bf16 autocast, Adagrad of elements, Adam of dense weights."
    failed: list[str] = []
    with process_group(run.device) as ranks:
        table = run.results.table("DCN-v2 with several sets", columns, note)
        for size in sizes:
            _compare(run, table, [_drawn(run, size, *each) for each in _SETS], (ranks, failed))
        table = run.results.table("Recipes of KuaiRand on made-up rows", columns, note)
        with TemporaryDirectory() as directory:
            os.chdir(directory)  # recipes name their files from the working directory
            cases = _of_kuairand(run, ranks)
            _compare(run, table, cases, (ranks, failed))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


Case = tuple[str, Recipe, DataSchema, Sequence[Batch]]
"""Name, recipe, columns of its data, and its batches."""


def _compare(
    run: Asked, table: Table, cases: Sequence[Case], rest: tuple[Ranks, list[str]]
) -> None:
    ranks, failed = rest
    first: float | None = None
    for name, recipe, schema, made in cases:
        batch = recipe.data.global_batch_size
        try:
            sharded = sharded_model(recipe, schema, ranks, is_bf16=True)
            pipeline, stream = Pipeline(sharded), itertools.cycle(made)
            spread = timed(lambda: pipeline.step(stream), run.device, run.choose(20, 2))  # noqa: B023
            pipeline.close()
        except Exception as error:  # noqa: BLE001 - the other models are measured all the same
            traceback.print_exc()
            failed.append(name)
            run.results.add(table, name, batch, f"failed: {type(error).__name__}", None, None)
            continue
        speed = 1e3 * batch / spread.median
        first = first or speed
        run.results.add(table, name, batch, spread.text(), round(speed), round(speed / first, 3))
        run.results.fact(f"samples/s, {name}, {batch}", speed)


def _drawn(run: Asked, batch: int, sets: int, width: int) -> Case:
    shape = run.choose(_FULL, TRIAL)
    width = run.choose(width, width // 8)
    model = f"num_cross_layers=3, cross_rank={shape.rank}, hidden={list(shape.top)}"
    recipe = recipe_of(
        shape,
        batch,
        run.device,
        [
            f"embedding.dim={width}",
            f"embedding.num_sets={sets}",
            f"model={{name='dcnv2', structure='stacked', {model}}}",
        ],
    )
    made = batches(shape, batch, "random", 4, is_pinned=run.device == "cuda")
    return f"{sets} x {width} columns", recipe, schema_of(shape), made


def _of_kuairand(run: Asked, ranks: Ranks) -> list[Case]:
    data = Path("out/kuairand")
    sizes = run.choose(Sizes(120_000, 20_000, 7_000), Sizes())
    schema = write_small_kuairand(data, sizes)
    batch = run.choose(8_192, 64)
    cases: list[Case] = []
    for file in _KUAIRAND:
        path = _RECIPES / file
        overrides = [f"data.global_batch_size={batch}", f"train.device={run.device}"]
        recipe = load(path, overrides + drawn_codes(path, data))
        recipe = with_drawn_vectors(recipe, data)
        source = open_data(recipe.data.path)
        if recipe.features.statistics is not None:
            write_statistics(fit_numbers(recipe, source), Path(recipe.features.statistics))
        read = (each for each, _ in Splits(recipe, source, ranks).train.epoch())
        made = list(itertools.islice(read, run.choose(8, 3)))
        if run.device == "cuda":
            made = [each.pin_memory() for each in made]
        cases.append((recipe.name, recipe, schema, made))
    return cases


if __name__ == "__main__":
    main()
