"""The same training step, one change after the other: what each was expected to give, and what it gave.

    python -m benchmarks.gpu.ladder --out out/ladder.json

The prediction of a rung is counted from operations, bytes and the ceilings of the same run, before the rung is
measured. The package's own step is the rung "pipeline"; what is above it are variants of this benchmark.
"""

from __future__ import annotations

import gc
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.clock import Spread, timed
from benchmarks.gpu.dlrm import TRIAL, Core, Shape, batches, recipe_of, schema_of, sharded_model
from benchmarks.gpu.narrow import NarrowBatch
from benchmarks.gpu.results import Asked, asked
from benchmarks.gpu.where import profiled
from prismrec.data.batch import Batch
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import Ranks, process_group
from prismrec.train.sharding import ShardedModel

_FULL = Shape(rows=250_000)
"""Small enough that no rung runs out of memory if one before it was not freed, and far beyond any cache."""
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Step:
    """How a step is taken.

    Args:
        products: type of the matrix products, "fp32", "tf32" or "bf16".
        is_fused: the dense optimizer is one kernel.
        is_pipelined: copies and exchanges of the next batch overlap with this one.
        is_narrow: ids are copied as int32.
        core: the dense part as it is ("eager"), as a CUDA graph ("graph") or compiled ("compiled").
    """

    products: str = "fp32"
    is_fused: bool = False
    is_pipelined: bool = False
    is_narrow: bool = False
    core: str = "eager"


PIPELINE = Step("bf16", is_fused=True, is_pipelined=True)
RUNGS: tuple[tuple[str, Step], ...] = (
    ("plain: fp32 products, Adam of separate kernels, nothing overlaps", Step()),
    ("tf32 products", Step("tf32")),
    ("bf16 products (autocast)", Step("bf16")),
    ("fused Adam", Step("bf16", is_fused=True)),
    ("pipeline: what the package does", PIPELINE),
    ("variant: ids copied as int32", replace(PIPELINE, is_narrow=True)),
    ("variant: CUDA graph of the dense part", replace(PIPELINE, core="graph")),
    ("variant: torch.compile of the dense part", replace(PIPELINE, core="compiled")),
)
"""What is measured; the variants are each held against the pipeline."""

_CUDA_ONLY = ("tf32", "graph", "compiled")


@dataclass(slots=True)
class Bench:
    """The steps of one model size.

    Args:
        run: how it is run.
        ranks: this process.
        shape: of the model.
        batch: rows of a step.
    """

    run: Asked
    ranks: Ranks
    shape: Shape
    batch: int

    def measured(self, step: Step) -> tuple[Spread, dict[str, float]]:
        """Milliseconds of a step, and where they go."""
        recipe, schema = recipe_of(self.shape, self.batch, self.run.device), schema_of(self.shape)
        with _precision("high" if step.products == "tf32" else "highest"):
            sharded = sharded_model(recipe, schema, self.ranks, is_bf16=step.products == "bf16")
            if not step.is_fused:
                _unfuse(sharded)
            self._prepare(sharded, step)
            made: list[Batch] = batches(
                self.shape, self.batch, "random", 8, is_pinned=self.run.device == "cuda"
            )
            if step.is_narrow:
                made = [NarrowBatch.of(each) for each in made]
            call, close = _caller(sharded, itertools.cycle(made), step)
            for _ in range(_WARM_UP):
                call()
            spread = timed(call, self.run.device, self.run.choose(20, 2))
            times = profiled(call, self.run.device, self.run.choose(5, 1))
            close()
        del sharded, call, close
        gc.collect()
        return spread, times

    def _prepare(self, sharded: ShardedModel, step: Step) -> None:
        model: Any = sharded.leaf.ranker.model
        if step.core == "compiled":
            model.core = torch.compile(model.core)
        elif step.core == "graph":
            device = self.run.device
            vectors = torch.randn(self.batch, self.shape.tables, self.shape.dim, device=device)
            numbers = torch.randn(self.batch, self.shape.numbers, device=device)
            with torch.autocast(
                device, torch.bfloat16, enabled=step.products == "bf16", cache_enabled=False
            ):
                model.core = torch.cuda.make_graphed_callables(
                    model.core, (vectors.requires_grad_(), numbers)
                )


def main() -> None:
    """Measure every rung at both batch sizes; exit code 1 if one that is no variant does not hold."""
    run = asked(__doc__)
    shape, broken = run.choose(_FULL, TRIAL), 0
    with process_group(run.device) as ranks:
        for batch in run.choose((65_536, 16_384), (32,)):
            broken += climb(Bench(run, ranks, shape, batch))
    if broken:
        sys.exit(f"{broken} steps of the ladder do not hold")


def climb(bench: Bench) -> int:
    """Measure the rungs at one batch size; a rung that does not hold says why and stops no other.

    Returns:
        How many of the package's own steps do not hold.
    """
    run = bench.run
    table = run.results.table(
        f"Ladder, batch {bench.batch:,}",
        ["step", "predicted ms", "ms (range)", "against the one before", "samples/s", "busy"],
        f"{bench.shape.tables} tables x {bench.shape.rows:,} rows x {bench.shape.dim}, random ids. The "
        "variants are held against the pipeline. `busy` is the share of the time in which a kernel runs.",
    )
    found: dict[Step, tuple[Spread, dict[str, float]]] = {}
    before: Step | None = None
    broken = 0
    for name, step in RUNGS:
        if run.device != "cuda" and (step.products in _CUDA_ONLY or step.core in _CUDA_ONLY):
            run.results.add(table, name, None, "not on the CPU", None, None, None)
            continue
        expected = None if before not in found else predicted(bench, before, step, found[before])  # type: ignore[index, arg-type]
        try:
            found[step] = bench.measured(step)
        except Exception as error:  # noqa: BLE001 - whatever it was belongs in the table
            said, _, _ = str(error).partition("\n")  # it may have no text
            text = f"does not hold: {type(error).__name__}: {said[:150]}"
            run.results.add(table, name, expected, text, None, None, None)
            traceback.print_exc()
            broken += not name.startswith("variant")
            continue
        spread, times = found[step]
        ratio = None if before not in found else found[before][0].median / spread.median  # type: ignore[index]
        share = times["busy"] / times["wall"] if times["wall"] else None
        speed = round(1e3 * bench.batch / spread.median)
        run.results.add(table, name, expected, spread.text(), ratio, speed, share)
        before = PIPELINE if step.is_pipelined else step
    return broken


def predicted(
    bench: Bench, before: Step, step: Step, found: tuple[Spread, dict[str, float]]
) -> float | None:
    """Milliseconds that a rung should take, by the one before it and the ceilings; None without ceilings.

    Args:
        bench: sizes.
        before: the step it is held against.
        step: the rung.
        found: what that step took, and where.
    """
    ceilings = bench.run.before.get("ceilings", {})
    base, times = found
    try:
        saved = saving(bench, before, step, ceilings)
    except KeyError:
        return None
    if step.core == "graph":
        return (
            base.median * times["busy"] / times["wall"]
        )  # the device no longer waits for the host
    return base.median - saved


def saving(bench: Bench, before: Step, step: Step, ceilings: dict[str, float]) -> float:
    """Milliseconds that a change should save, but for a CUDA graph's.

    Raises:
        KeyError: a ceiling was not measured.
    """
    core, batch = Core(bench.shape), bench.batch
    if step.products != before.products:
        operations = 6 * batch * core.products / 1e9
        slow, fast = (ceilings[f"{each.products} product"] for each in (before, step))
        return operations * (1 / slow - 1 / fast)
    if step.is_fused != before.is_fused:
        # Separate kernels go 18 times over arrays as large as the weights, the fused one 7 times.
        size = 4 * sum(each.numel() for each in core.parameters())
        return 11 * size / ceilings["copy in device memory"] / 1e6
    if step.is_pipelined != before.is_pipelined:
        return copied_bytes(bench) / ceilings["host to device, pinned"] / 1e6
    if step.core == "compiled":
        # A cross layer reads and writes 8 arrays (B, N * K) beside its products, forward and backward;
        # 5 are left when neighbours are fused.
        width = 4 * batch * core.cross.out_dim
        return 3 * 3 * width / ceilings["copy in device memory"] / 1e6
    return 0.0  # int32 ids: the copy is hidden already


def copied_bytes(bench: Bench) -> int:
    """Bytes of a batch: ids, sizes of bags, numbers, three columns of labels, three of int64."""
    row = bench.shape.tables * (8 + 4) + 4 * bench.shape.numbers + 3 * 4 + 3 * 8
    return bench.batch * row


def _caller(
    sharded: ShardedModel, stream: Iterator[Batch], step: Step
) -> tuple[Callable[[], object], Callable[[], object]]:
    """What takes a step, and what ends them."""
    if step.is_pipelined:
        pipeline = Pipeline(sharded)
        return lambda: pipeline.step(stream), pipeline.close

    def plain() -> None:
        batch = next(stream).to(sharded.ranks.device, non_blocking=True)
        sharded.optimizers.zero_grad()
        loss, _ = sharded.dmp(batch)
        loss.backward()
        sharded.optimizers.step()

    return plain, lambda: None


def _unfuse(sharded: ShardedModel) -> None:
    """Let the dense optimizer run a kernel for each operation."""
    for group in sharded.plain[0].param_groups:
        group["fused"], group["foreach"] = False, True


@contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    main()
