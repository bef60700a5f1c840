"""The training loop, top to bottom. It runs in a plain process, under torchrun and inside Ray."""

from __future__ import annotations

import gc
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prismrec.config import Recipe
from prismrec.data.encode.copies import file_digests
from prismrec.data.source import DataSource
from prismrec.models import spec_of
from prismrec.models.calibration import LogitMap
from prismrec.train.calibration import FILE, write_maps
from prismrec.train.evaluate import Evaluator
from prismrec.train.feed import Feed, Splits
from prismrec.train.gradients import write_pushes
from prismrec.train.held_out import write_held_out
from prismrec.train.initial import start_weights
from prismrec.train.interrupts import StopRequest
from prismrec.train.meter import Meter
from prismrec.train.occupancy import occupancy
from prismrec.train.phases import PhasePlan
from prismrec.train.pipeline import Pipeline
from prismrec.train.precision import resolve_precision
from prismrec.train.process_group import Ranks
from prismrec.train.propensity import with_propensities
from prismrec.train.run_files import RunFiles
from prismrec.train.saving import Saver
from prismrec.train.sentinel import RolledBack, Sentinel
from prismrec.train.sharding import ShardedModel, shard_model
from prismrec.train.signals import signals_ask
from prismrec.train.state import TrainState
from prismrec.train.tracker import Probe, Tracker
from prismrec.train.watchdog import Watchdog

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Args:
        checkpoint: the one to register: the best where evaluations chose one, else the last.
        steps: steps done.
        metrics: exact metrics of the test split at that checkpoint; empty without such a split and
            after a stop by a signal.
        examples_per_second: rows trained on per second over all ranks, evaluations not counted.
        stopped_by: name of the signal that ended the run early, "patience", or "".
        unknown_ids: by feature, ids of the rows trained on since this start that no row of the
            table stands for.
        skipped: row groups and files that cannot be decoded, see `SkippedRows.found`.
        dropped_steps: steps whose rows are not in the weights because the loss was not finite.
    """

    checkpoint: Path
    steps: int
    metrics: dict[str, float]
    examples_per_second: float
    stopped_by: str
    unknown_ids: dict[str, int]
    skipped: list[dict[str, Any]] = field(default_factory=list)
    dropped_steps: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Session:
    """Where a run happens and who hears of it.

    Args:
        ranks: this process among the others.
        files: the run's directory.
        tracker: told by rank 0 only.
        attempt: differs at every start of the same run.
        probe: called at each evaluation with the sharded tables.
    """

    ranks: Ranks
    files: RunFiles
    tracker: Tracker
    attempt: str
    probe: Probe | None = None

    def stop_files(self) -> tuple[Path, Path]:
        """Where a request to stop may be: that of the whole run, and that of this start of it."""
        return self.files.stop(), self.files.stop(self.attempt)

    def log(self, metrics: dict[str, float], state: TrainState) -> None:
        """Record metrics as of the state's step, on rank 0."""
        if self.ranks.is_first:
            self.tracker.log_metrics(metrics | {"rows_seen": state.rows_seen}, state.step)


def train(recipe: Recipe, source: DataSource, session: Session) -> Outcome:
    """Train until the recipe's end, a stop request or the end of patience.

    Goes on from the newest checkpoint in the run's directory, if there is one, and does so again
    each time that a step is rolled back.

    Collective: every rank calls it.

    Args:
        recipe: the resolved recipe.
        source: the opened data set.
        session: ranks, directory and tracker.

    Raises:
        UserError: the recipe does not fit the data, the device or the checkpoint, or a loss is not
            finite.
    """
    for start in itertools.count():
        seconds = recipe.train.hang_timeout_s
        try:
            with Watchdog(session.ranks, session.files, seconds) as watchdog:
                return _train(recipe, source, session, watchdog, f"{session.attempt}-{start}")
        except RolledBack as back:
            step, what = back.incident.step, back.incident.what
            _log.warning("step %d: %s; back to the last checkpoint", step, what)
        gc.collect()  # hooks hold the model they belong to, which must not lie beside the next one
        if session.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    raise AssertionError("unreachable: the sentinel ends the run before")


def _train(  # noqa: PLR0915 - the one function that is read from top to bottom
    recipe: Recipe, source: DataSource, session: Session, watchdog: Watchdog, attempt: str
) -> Outcome:
    """One start of `train`; `attempt` differs at each."""
    ranks = session.ranks
    recipe = with_propensities(recipe, source, ranks)
    spec = spec_of(recipe, source.schema)
    splits = Splits(recipe, source, ranks)
    splits.agree()
    total_steps = splits.total_steps()
    precision = choose_precision(recipe, session)
    sharded = shard_model(recipe, spec, ranks, is_bf16=precision == "bf16", total_steps=total_steps)
    digests = file_digests(recipe, splits.encoders)
    saver = Saver(recipe, splits, sharded, session.files, attempt, digests)
    state = saver.resume()
    if not saver.has_resumed:
        take_start_weights(recipe, source, sharded, session)
    sharded.optimizers.start_at(state.step, state.worse)
    phases = PhasePlan(recipe.train.phases, total_steps, sharded)
    evaluator = Evaluator(recipe, sharded, splits.frequency())
    record_start(session, sharded, state, {"precision": precision, "total_steps": total_steps})

    meter = Meter(recipe, sharded.leaf.objective, ranks, total_steps)
    sentinel = Sentinel(recipe, sharded, session.files.nonfinite)
    pipeline = Pipeline(sharded, sentinel)
    stop, stopped = StopRequest(session.stop_files(), ranks), ""
    signals = signals_ask(session.stop_files()[1])
    splits.on_batch = lambda: watchdog.moved(state.step, "an evaluated batch")
    with signals, saver.settled(), Feed(splits, state, total_steps) as feed:
        watchdog.follow(feed)
        while state.step < total_steps and not state.stopped_early:
            stopped = stop.agreed()
            if stopped:
                break
            torch.manual_seed(step_seed(recipe.seed, state.step, ranks.rank))
            phases.before(state.step)
            output = pipeline.step(feed)
            if sentinel.has_dropped:
                feed.drop(state, saver.ledger)
            else:
                meter.add(output, feed.take(state, saver.ledger), feed.waited())
            watchdog.moved(state.step)
            is_evaluated = splits.evaluates_after(state.step)
            if meter.is_due(state.step) or saver.is_due(state.step) or is_evaluated:
                sentinel.check()
            if meter.is_due(state.step):
                pushes = pushes_of(session, sharded, state)
                told = sharded.managed_ids() | phases.metrics() | sentinel.metrics()
                told |= saver.skipped.metrics(saver.ledger)
                session.log(meter.read() | pushes | told, state)
            if is_evaluated:
                with meter.paused(), pipeline.detached():
                    report = evaluator.run(splits.batches("valid"))
                    seen = metrics_of_tables(recipe, session, sharded, splits, state)
                    session.log(report.named("valid") | seen, state)
                    evaluator.judge(report, state)
                    watchdog.moved(state.step)
                    sharded.optimizers.start_at(state.step, state.worse)
                    with watchdog.paused():
                        saver.save(state, report)
            elif saver.is_due(state.step):
                with meter.paused(), watchdog.paused():
                    saver.save(state)

    pipeline.close()
    sentinel.check()
    rows_per_second = meter.examples_per_second()
    with watchdog.paused():
        saver.finish(state)
    why = stopped or ("patience" if state.stopped_early else "")
    unknown_ids = _unknown_ids(recipe, session, sharded, splits, state)
    outcome = Outcome(
        saver.newest(), state.step, {}, rows_per_second, why, unknown_ids,
        saver.skipped.found, sorted(saver.ledger.dropped),
    )  # fmt: skip
    if stopped:
        return outcome
    with watchdog.paused():
        checkpoint = saver.restore_best()
    maps = _calibration(recipe, session, evaluator, splits, checkpoint)
    metrics = _final_report(session, evaluator, splits, state, maps)
    write_held_out(recipe, splits, sharded, session.files.held_out)
    skipped = _skipped(session, saver, state)
    return replace(outcome, checkpoint=checkpoint, metrics=metrics, skipped=skipped)


def take_start_weights(
    recipe: Recipe, source: DataSource, sharded: ShardedModel, session: Session
) -> None:
    """Put what the recipe takes from elsewhere in the place of drawn weights, and tell what."""
    found = start_weights(recipe, source, sharded, session.files)
    for matches in found:
        session.log(matches.metrics(), TrainState())
    if found and session.ranks.is_first:
        session.tracker.log_file(session.files.matched)


def _unknown_ids(
    recipe: Recipe, session: Session, sharded: ShardedModel, splits: Splits, state: TrainState
) -> dict[str, int]:
    """Count and record what the ids of the rows trained on came to.

    Collective: every rank calls it.
    """
    counts = splits.id_counts()
    features = [each.key for each in recipe.features.id_lists]  # a number has states instead
    unknown = {name: counts.unknown[name] for name in features if counts.unknown[name]}
    per_feature = {f"data/unknown_ids/{name}": float(n) for name, n in unknown.items()}
    session.log(per_feature | counts.metrics() | occupancy(recipe, sharded), state)
    return unknown


def _skipped(session: Session, saver: Saver, state: TrainState) -> list[dict[str, Any]]:
    """Record what could not be decoded in any split, and return it.

    Collective: every rank calls it.
    """
    session.log(saver.skipped.metrics(saver.ledger), state)
    found = saver.skipped.found
    if found and session.ranks.is_first:
        session.files.skipped.write_text(json.dumps(found, indent=1) + "\n")
        session.tracker.log_file(session.files.skipped)
    return found


def _calibration(
    recipe: Recipe, session: Session, evaluator: Evaluator, splits: Splits, checkpoint: Path
) -> list[LogitMap]:
    """Fit the calibration that the recipe asks for, and put it beside the weights it belongs to.

    Collective: every rank calls it.
    """
    if recipe.calibration is None:
        return []
    maps = evaluator.fit(recipe.calibration, splits.batches("valid"))
    if session.ranks.is_first:
        write_maps(checkpoint / FILE, recipe.task_names, maps)
    return maps


def _final_report(
    session: Session,
    evaluator: Evaluator,
    splits: Splits,
    state: TrainState,
    maps: Sequence[LogitMap],
) -> dict[str, float]:
    """Exact metrics of the test rows, if there are any."""
    if not splits.has("test"):
        return {}
    report = evaluator.run(splits.batches("test"), is_final=True, maps=maps)
    session.log(report.named("test"), state)
    if session.ranks.is_first:
        session.files.write_curves(report.curves)
    return report.metrics


def choose_precision(recipe: Recipe, session: Session) -> str:
    """What the recipe says, or for `auto` what this run was started with, or what is faster now.

    Collective: every rank calls it.
    """
    wanted: str = recipe.train.precision
    if wanted == "auto":
        wanted = session.ranks.share_text(session.files.facts().get("precision", wanted))
    precision = resolve_precision(wanted, session.ranks)
    if session.ranks.is_first:
        session.files.record({"precision": precision})
    return precision


def record_start(
    session: Session, sharded: ShardedModel, state: TrainState, facts: Mapping[str, Any]
) -> None:
    """Put down where the tables are, what they take, and other facts of the run.

    Collective: every rank calls it.
    """
    memory = sharded.table_memory()
    session.log(memory.metrics(), state)
    if session.ranks.is_first:
        session.files.write_plan(sharded.plan)
        session.files.record(memory.facts())
        session.tracker.log_parameters({"world_size": session.ranks.world_size, **facts})


def metrics_of_tables(
    recipe: Recipe, session: Session, sharded: ShardedModel, splits: Splits, state: TrainState
) -> dict[str, float]:
    """What an evaluation records of the tables: their ids, how full they are, what the probe sees.

    Collective: every rank calls it.
    """
    seen = splits.id_counts().metrics() | occupancy(recipe, sharded)
    if session.probe is None:
        return seen
    return seen | session.probe(sharded.shards(), sharded.spec, state.step)


def pushes_of(session: Session, sharded: ShardedModel, state: TrainState) -> dict[str, float]:
    """How hard the objective pushed the logits since the last reading, if the recipe asks for it.

    Collective: every rank calls it.
    """
    gradients = sharded.leaf.gradients
    if gradients is None:
        return {}
    pushes = gradients.read(session.ranks)
    if session.ranks.is_first:
        write_pushes(session.files.gradients, state.step, pushes)
    return {each.name: each.mean for each in pushes}


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one rank's dropout at one step: a resumed run draws what the first would have."""
    return (seed * 1_000_003 + step) * 65_537 + rank
