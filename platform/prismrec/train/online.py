"""Training on a stream, window by window: one process group, model and optimizer for all of it.

Every window is evaluated before it is trained on, so that its metrics are of rows nobody has seen. The
position in the stream is in every checkpoint; a slice of the stream is an epoch of the ledger.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prismrec.config import Recipe
from prismrec.config.online import OnlineSection
from prismrec.data.arrivals import Arrivals
from prismrec.data.encode.copies import file_digests
from prismrec.data.encode.encoders import Encoder
from prismrec.data.encode.tables import encoders_of
from prismrec.data.filters import count_rows, row_filter
from prismrec.data.source import DataSource
from prismrec.data.windows import Position, Slice
from prismrec.models import spec_of
from prismrec.train.evaluate import Evaluator
from prismrec.train.feed import Feed, Splits
from prismrec.train.held_out import write_held_out
from prismrec.train.interrupts import StopRequest
from prismrec.train.loop import (
    Session,
    choose_precision,
    metrics_of_tables,
    pushes_of,
    record_start,
    step_seed,
    take_start_weights,
)
from prismrec.train.meter import Meter
from prismrec.train.periods import PeriodFiles
from prismrec.train.pipeline import Pipeline
from prismrec.train.process_group import Ranks
from prismrec.train.saving import Saver
from prismrec.train.sentinel import Sentinel
from prismrec.train.sharding import ShardedModel, shard_model
from prismrec.train.signals import signals_ask
from prismrec.train.state import TrainState
from prismrec.train.waiting import Waiting
from prismrec.train.watchdog import Watchdog

_NO_TOTAL = 0
"""Steps of a run whose length nobody knows."""


@dataclass(frozen=True, slots=True)
class OnlineOutcome:
    """What a run over a stream came to.

    Args:
        checkpoint: the newest.
        steps: steps done.
        windows: windows trained on, those before a resume among them.
        rows: rows trained on.
        late_files: files with rows that came late.
        skipped_rows: rows that came late and were left out.
        metrics: of the last window, before it was trained on.
        examples_per_second: rows trained on per second over all ranks, since this start.
        stopped_by: name of the signal that ended the run, or "".
    """

    checkpoint: Path
    steps: int
    windows: int
    rows: int
    late_files: int
    skipped_rows: int
    metrics: dict[str, float]
    examples_per_second: float
    stopped_by: str


@dataclass(frozen=True, slots=True)
class _StreamRows:
    """What a checkpoint of a stream has to know again: the columns. Its rows are in the position."""

    source: DataSource
    ranks: Ranks
    digest: str = ""

    def skipped(self) -> list[dict[str, Any]]:
        return []


@dataclass(slots=True)
class _Run:
    """What lives through all windows.

    Args:
        recipe: the resolved recipe, with an `online` section.
        session: ranks, directory and tracker.
        arrivals: the stream.
        encoders: of every field that is looked up.
        sharded: model and optimizers.
        saver: checkpoints and the ledger.
        state: steps, rows, and the offsets within the current slice.
        position: in the stream.
        sentinel: losses that are no numbers.
        pipeline: steps.
        meter: losses and seconds.
        evaluator: metrics.
        stop: requests to stop while training.
        metrics: of the last window that was evaluated.
    """

    recipe: Recipe
    session: Session
    arrivals: Arrivals
    encoders: Mapping[str, Encoder]
    sharded: ShardedModel
    saver: Saver
    state: TrainState
    position: Position
    sentinel: Sentinel
    pipeline: Pipeline
    meter: Meter
    evaluator: Evaluator
    stop: StopRequest
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def section(self) -> OnlineSection:
        assert self.recipe.online is not None
        return self.recipe.online

    def save(self) -> None:
        """Begin a checkpoint of weights and position.

        Collective: every rank calls it at the same step.
        """
        self.sentinel.check()
        self.saver.beside = self.position.to_json()
        self.saver.save(self.state)


def train_online(recipe: Recipe, session: Session) -> OnlineOutcome:
    """Train on the windows of a stream until it ends, the recipe's end or a stop request.

    Goes on from the newest checkpoint in the run's directory, if there is one: in the middle of a
    slice where it was saved there, with the files that the slice was planned with.

    Collective: every rank calls it.

    Args:
        recipe: the resolved recipe; it has an `online` section and names `features.time`.
        session: ranks, directory and tracker.

    Raises:
        UserError: the recipe does not fit the data, the device or the checkpoint, or a file of the
            stream is not as it must be.
    """
    assert recipe.online is not None
    assert recipe.features.time is not None
    arrivals = Arrivals(recipe.data.path, recipe.features.time)
    run = _begin(recipe, session, arrivals)
    stop_files = session.stop_files()
    waiting = Waiting(recipe.online, arrivals, recipe.features.time, session.ranks, stop_files)
    stopped = ""
    with signals_ask(stop_files[1]):
        while not stopped:
            if run.position.current is None:
                with run.meter.paused():
                    turn = waiting.next(run.position)
                if turn.position is None:
                    stopped = turn.stopped_by
                    break
                run.position = turn.position
            stopped = _train_slice(run)
    run.pipeline.close()
    run.sentinel.check()
    run.saver.beside = run.position.to_json()
    run.saver.finish(run.state)
    return OnlineOutcome(
        run.saver.newest(),
        run.state.step,
        run.position.windows,
        run.state.rows_seen,
        run.position.num_late_files,
        run.position.skipped_rows,
        run.metrics,
        run.meter.examples_per_second(),
        stopped,
    )


def windowed(recipe: Recipe, part: Slice) -> Recipe:
    """The recipe with a slice as the rows to train on, and as those to validate on.

    Args:
        recipe: of the stream; the conditions of its `data.splits.train` hold too.
        part: of the stream.
    """
    assert recipe.features.time is not None
    rows = (*recipe.data.splits.train, *part.conditions(recipe.features.time))
    splits = recipe.data.splits.model_copy(update={"train": rows, "valid": rows, "test": None})
    data = recipe.data.model_copy(update={"splits": splits})
    train = recipe.train.model_copy(update={"epochs": 1, "steps": None})
    return recipe.model_copy(update={"data": data, "train": train})


def _begin(recipe: Recipe, session: Session, arrivals: Arrivals) -> _Run:
    """Model, optimizers and position, new or from the newest checkpoint.

    Collective: every rank calls it.
    """
    ranks, schema = session.ranks, arrivals.schema
    no_rows = arrivals.source({})
    encoders = encoders_of(recipe, schema)
    precision = choose_precision(recipe, session)
    sharded = shard_model(
        recipe,
        spec_of(recipe, schema),
        ranks,
        is_bf16=precision == "bf16",
        total_steps=_NO_TOTAL,
    )
    digests = file_digests(recipe, encoders)
    rows = _StreamRows(no_rows, ranks)
    saver = Saver(recipe, rows, sharded, session.files, session.attempt, digests)
    state = saver.resume()
    if not saver.has_resumed:
        take_start_weights(recipe, no_rows, sharded, session)
    sharded.optimizers.start_at(state.step, state.worse)
    record_start(session, sharded, state, {"precision": precision})
    sentinel = Sentinel(recipe, sharded, session.files.nonfinite)
    return _Run(
        recipe=recipe,
        session=session,
        arrivals=arrivals,
        encoders=encoders,
        sharded=sharded,
        saver=saver,
        state=state,
        position=Position.from_json(saver.beside),
        sentinel=sentinel,
        pipeline=Pipeline(sharded, sentinel),
        meter=Meter(recipe, sharded.leaf.objective, ranks, _NO_TOTAL),
        evaluator=Evaluator(recipe, sharded),
        stop=StopRequest(session.stop_files(), ranks),
    )


def _train_slice(run: _Run) -> str:
    """Evaluate and train on the current slice, and say which signal stopped it, if one did.

    Collective: every rank calls it.
    """
    part, state = run.position.current, run.state
    assert part is not None
    recipe = windowed(run.recipe, part)
    source = run.arrivals.source(part.files)
    rows = _count(recipe, source)
    if rows:
        splits = Splits(recipe, source, run.session.ranks, run.encoders)
        splits.agree()
        stopped = _use_rows(run, recipe, splits, part, rows)
        if stopped:
            return stopped
    else:
        state.epoch += 1
    run.position.done(has_rows=rows > 0)
    if rows and part.kind == "late":
        run.session.log({"stream/late_rows": float(rows)}, state)
    is_due = run.saver.is_due(state.step)
    if run.recipe.checkpoint.every_steps is None:
        is_due = part.kind == "window"
    if rows and is_due:  # not before the position has left the slice behind
        with run.meter.paused():
            run.save()
    return ""


def _count(recipe: Recipe, source: DataSource) -> int:
    rows = row_filter(recipe.data.splits.train, source, "data.splits.train")
    return int(count_rows(source, rows).sum())


def _use_rows(run: _Run, recipe: Recipe, splits: Splits, part: Slice, rows: int) -> str:
    """Evaluate and train on the `rows` rows of the current slice, watched for ranks that hang.

    Collective: every rank calls it.
    """
    state, session = run.state, run.session
    with Watchdog(session.ranks, session.files, run.recipe.train.hang_timeout_s) as watchdog:
        splits.on_batch = lambda: watchdog.moved(state.step, "an evaluated batch")
        watchdog.moved(state.step)
        watchdog.begin()
        if not state.offsets:
            is_window = part.kind == "window"
            found = _evaluate(run, recipe, splits, part, watchdog) if is_window else {}
            watchdog.moved(state.step)
            _record(run, part, rows, found)
        stopped = _train_rows(run, splits, watchdog)
        if not stopped:
            session.log(splits.id_counts().metrics(), state)
    return stopped


def _train_rows(run: _Run, splits: Splits, watchdog: Watchdog) -> str:
    """Train on the rows of the current slice from the state's offsets on.

    Collective: every rank calls it.
    """
    state, session, sharded, meter = run.state, run.session, run.sharded, run.meter
    sentinel = run.sentinel
    lanes = splits.train.lanes
    total = state.step + lanes.steps(state.offsets or [0] * lanes.num_lanes)
    with Feed(splits, state, total) as feed:
        watchdog.follow(feed)
        while state.step < total:
            stopped = run.stop.agreed()
            if stopped:
                return stopped
            torch.manual_seed(step_seed(run.recipe.seed, state.step, session.ranks.rank))
            output = run.pipeline.step(feed)
            if sentinel.has_dropped:
                feed.drop(state, run.saver.ledger)
            else:
                meter.add(output, feed.take(state, run.saver.ledger), feed.waited())
            watchdog.moved(state.step)
            if meter.is_due(state.step):
                sentinel.check()
                told = pushes_of(session, sharded, state) | sharded.managed_ids()
                session.log(meter.read() | told | sentinel.metrics(), state)
            if run.saver.is_due(state.step) and state.step < total:
                with meter.paused(), watchdog.paused():
                    run.save()
    return ""


def _evaluate(
    run: _Run, recipe: Recipe, splits: Splits, part: Slice, watchdog: Watchdog
) -> dict[str, float]:
    """Metrics of a window that nobody has trained on, and a version of the model if one is due.

    Collective: every rank calls it.
    """
    state, session = run.state, run.session
    with run.meter.paused(), run.pipeline.detached():
        report = run.evaluator.run(splits.batches("valid"))
        seen = metrics_of_tables(recipe, session, run.sharded, splits, state)
        run.metrics = report.metrics
        facts = {"window/start": float(part.start), "window/rows": float(splits.train.num_rows)}
        session.log(report.named("window") | seen | facts, state)
        done, every = run.position.windows, run.section.publish_every
        is_due = every > 0 and done > 0 and done % every == 0
        if is_due:
            _request(run, recipe, splits, part, watchdog)
    return report.metrics


def _record(run: _Run, part: Slice, rows: int, metrics: dict[str, float]) -> None:
    """Append a slice to the run's record; one that a resumed run begins again is there again."""
    if not run.session.ranks.is_first:
        return
    line = {
        "slice": run.state.epoch,
        **part.to_json(),
        "rows": rows,
        "step": run.state.step,
        "late_files": run.position.num_late_files,
        "skipped_rows": run.position.skipped_rows,
        "metrics": {k: v if math.isfinite(v) else None for k, v in metrics.items()},
    }
    PeriodFiles(run.session.files.directory).append_slice(line)


def _request(run: _Run, recipe: Recipe, splits: Splits, part: Slice, watchdog: Watchdog) -> None:
    """Put a copy of the weights and the window's rows aside, for whoever publishes them.

    Collective: every rank calls it.
    """
    run.sentinel.check()
    run.saver.beside = run.position.to_json()
    with watchdog.paused():
        run.saver.finish(run.state)
    checkpoint = run.saver.newest()
    period = PeriodFiles(run.session.files.directory).period(run.position.windows)
    is_first = run.session.ranks.is_first
    is_new = is_first and not period.is_requested
    if is_new:
        shutil.rmtree(period.directory, ignore_errors=True)
        period.directory.mkdir(parents=True)
    if not run.session.ranks.share_text("new" if is_new else ""):
        return  # the run was resumed in this window
    write_held_out(recipe, splits, run.sharded, period.run.held_out)
    if is_first:
        with watchdog.paused():
            shutil.copytree(checkpoint, period.checkpoint, copy_function=_link)
        shutil.copy(run.session.files.plan, period.run.plan)
        period.request(
            {
                "period": run.position.windows,
                "step": run.state.step,
                "slice": part.to_json(),
                "metrics": run.metrics,
            }
        )


def _link(source: str, target: str) -> Any:
    """The same file under another name, or a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        return shutil.copy2(source, target)
    return target
