"""Where the time of a training step goes: a trace for Chrome and a table of its parts, per rank.

The parts are intervals of the thread that trains, as TorchRec's pipeline, PyTorch and FBGEMM name
them in the trace; an interval inside another counts for itself only. On CUDA they are what the host
spends, and the trace has the kernels.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from prismrec.config import Recipe, UserError
from prismrec.config.external import find_modules_in
from prismrec.config.machine import threads_asked, threads_per_process
from prismrec.data.encode.copies import with_absolute_paths
from prismrec.data.ledger import Ledger
from prismrec.data.source import DataSource, open_recipe_data
from prismrec.jobs.launch import run_locally
from prismrec.jobs.order import Order
from prismrec.jobs.train import check_before_start
from prismrec.models import spec_of
from prismrec.train.feed import Feed, Splits
from prismrec.train.meter import Meter
from prismrec.train.pipeline import Pipeline
from prismrec.train.precision import resolve_precision
from prismrec.train.process_group import Ranks, process_group, resolve_device
from prismrec.train.propensity import with_propensities
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles
from prismrec.train.sharding import shard_model
from prismrec.train.state import TrainState

WARM_UP = 3
_STEP = "prismrec step"

PARTS: dict[str, tuple[str, ...]] = {
    "data wait": ("## next_batch",),
    "copy": ("## copy_batch_to_gpu", "## inplace_copy_batch_to_gpu", "## wait_for_batch"),
    "input exchange": (
        "## start_sparse_data_dist",
        "## wait_sparse_data_dist",
        "## all2all_data",
    ),
    "lookup": ("fbgemm::split_embedding_codegen_lookup", "fbgemm::dense_embedding_codegen_lookup"),
    "output exchange": (
        "## all2all_pooled",
        "## All2All_Pooled",
        "## reduce_scatter",
        "## ReduceScatter",
        "## all_gather",
        "## AllGather",
    ),
    "dense forward": ("## forward",),
    "backward": ("## backward",),
    "table update": ("torch::autograd::CppNode<SplitLookupFunction", "CppNode<Split"),
    "optimizer": ("## optimizer", "## zero_grad"),
}
"""Parts of a step in the order they are shown, and how the names of their intervals begin."""

REST = "rest"
"""What of a step is in no other part: the loop's own work."""


@dataclass(frozen=True, slots=True)
class Span:
    """An interval of one thread.

    Args:
        start: when it began, in microseconds.
        end: when it ended.
        part: what its time counts for.
    """

    start: float
    end: float
    part: str


def part_of(name: str) -> str | None:
    """The part that an interval of this name in a trace counts for, or None.

    >>> part_of("## backward 7 ##"), part_of("aten::mm")
    ('backward', None)
    """
    return next((part for part, starts in PARTS.items() if name.startswith(starts)), None)


def own_time(spans: Iterable[Span]) -> dict[str, float]:
    """Microseconds by part, the time of spans inside a span not counted for the outer one.

    Args:
        spans: of one thread, so that any two are nested or apart.

    >>> own_time([Span(0, 10, "rest"), Span(2, 9, "backward"), Span(4, 5, "table update")])
    {'rest': 3.0, 'backward': 6.0, 'table update': 1.0}
    """
    times: dict[str, float] = {}
    open_spans: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        while open_spans and open_spans[-1].end <= span.start:
            open_spans.pop()
        length = span.end - span.start
        times[span.part] = times.get(span.part, 0.0) + length
        if open_spans:
            times[open_spans[-1].part] -= length
        open_spans.append(span)
    return times


def profile_recipe(recipe: Recipe, steps: int, out: Path, *, verbose: bool) -> dict[str, Any]:
    """Run some steps on the recipe's workers, as processes of this machine, and measure their parts.

    Nothing is evaluated, saved or registered.

    Args:
        recipe: the resolved recipe.
        steps: steps to measure, after three that warm up; at least 1.
        out: directory for `trace-rank-N.json` of every rank and for `profile.json`.
        verbose: show what the libraries say.

    Returns:
        `steps`, `precision`, `examples_per_second`, `parts` (milliseconds of a step by part, one
        number per rank), `step` (their sums), `slowest` (the rank by part) and `traces`.

    Raises:
        UserError: the recipe does not fit the data or the device, or has too few rows.
    """
    find_modules_in(str(Path.cwd()))
    recipe = with_absolute_paths(recipe)
    if "://" not in recipe.data.path:
        data = recipe.data.model_copy(update={"path": str(Path(recipe.data.path).absolute())})
        recipe = recipe.model_copy(update={"data": data})
    check_before_start(recipe)
    files = RunFiles(out.absolute())
    (files.directory / "log").mkdir(parents=True, exist_ok=True)
    files.write_recipe(recipe)
    order: Order = {
        "directory": str(files.directory),
        "attempt": secrets.token_hex(4),
        "verbose": verbose,
        "folder": str(Path.cwd()),
        "threads": threads_asked(),
        "steps": steps,
    }
    with library_output(files.directory / "log" / "driver.log", verbose=verbose):
        run_locally(recipe, files, order, profile_rank)
    count = recipe.workers.count
    ranks = [json.loads(_measured(files, rank).read_text()) for rank in range(count)]
    document = summary(ranks, recipe.data.global_batch_size)
    document["traces"] = [str(_trace(files, rank)) for rank in range(count)]
    (files.directory / "profile.json").write_text(json.dumps(document, indent=1) + "\n")
    return document


def summary(ranks: Sequence[dict[str, Any]], batch_rows: int) -> dict[str, Any]:
    """What all ranks measured as one document; see `profile_recipe`.

    Args:
        ranks: `steps`, `precision` and `parts` in milliseconds a step of every rank.
        batch_rows: rows of a step over all ranks.
    """
    parts = {
        part: [round(rank["parts"].get(part, 0.0), 3) for rank in ranks] for part in [*PARTS, REST]
    }
    step = [round(sum(rank["parts"].values()), 3) for rank in ranks]
    return {
        "steps": ranks[0]["steps"],
        "precision": ranks[0]["precision"],
        "examples_per_second": round(batch_rows / max(step) * 1e3),
        "parts": parts,
        "step": step,
        "slowest": {part: times.index(max(times)) for part, times in parts.items()},
    }


def profile_rank(order: Order) -> None:
    """Measure as one rank; writes its trace and its parts into `order["directory"]`.

    Collective: every rank calls it.

    Args:
        order: with `steps`.
    """
    find_modules_in(order["folder"])
    files = RunFiles(Path(order["directory"]))
    recipe = files.read_recipe()
    with (
        library_output(files.log(int(os.environ.get("RANK", 0))), verbose=order["verbose"]),
        process_group(resolve_device(recipe.train.device)) as ranks,
    ):
        processes = max(1, ranks.local_world_size)
        torch.set_num_threads(threads_per_process(processes, order["threads"]))
        try:
            measured = _measure(recipe, open_recipe_data(recipe), ranks, order["steps"], files)
        except UserError as error:
            files.write_error(order["attempt"], error)
            raise
        _measured(files, ranks.rank).write_text(json.dumps(measured))


def _measure(
    recipe: Recipe, source: DataSource, ranks: Ranks, steps: int, files: RunFiles
) -> dict[str, Any]:
    recipe = with_propensities(recipe, source, ranks)
    spec = spec_of(recipe, source.schema)
    splits = Splits(recipe, source, ranks)
    total = WARM_UP + steps
    precision = resolve_precision(recipe.train.precision, ranks)
    sharded = shard_model(recipe, spec, ranks, is_bf16=precision == "bf16", total_steps=total)
    pipeline = Pipeline(sharded)
    meter = Meter(recipe, sharded.leaf.objective, ranks, total)
    state, ledger = TrainState(), Ledger()
    activities = [ProfilerActivity.CPU]
    if ranks.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # The pipeline takes two batches ahead; they must be there in the last measured steps too.
    with Feed(splits, state, total + 2) as feed:

        def step() -> None:
            torch.manual_seed(recipe.seed + state.step)
            output = pipeline.step(feed)
            meter.add(output, feed.take(state, ledger), feed.waited())

        for _ in range(WARM_UP):
            step()
        with profile(activities=activities) as profiler:
            for _ in range(steps):
                with record_function(_STEP):
                    step()
        pipeline.close()
    profiler.export_chrome_trace(str(_trace(files, ranks.rank)))
    times = own_time(_spans(profiler))
    parts = {part: microseconds / steps / 1e3 for part, microseconds in times.items()}
    return {"steps": steps, "precision": precision, "parts": parts}


def _spans(profiler: profile) -> list[Span]:
    """The parts of the measured steps on the thread that trains."""
    events = list(profiler.events() or [])
    (thread,) = {event.thread for event in events if event.name == _STEP}
    named = [
        (event, REST if event.name == _STEP else part_of(event.name))
        for event in events
        if event.thread == thread
    ]
    return [
        Span(event.time_range.start, event.time_range.end, part)
        for event, part in named
        if part is not None
    ]


def _trace(files: RunFiles, rank: int) -> Path:
    return files.directory / f"trace-rank-{rank}.json"


def _measured(files: RunFiles, rank: int) -> Path:
    return files.directory / f"parts-rank-{rank}.json"
