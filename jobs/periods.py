"""Versions of a model that a stream goes on training: exported, judged, registered, and promoted.

It runs beside the workers, in the process that started them, and never holds them up.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prismrec.checkpoint.exchange import export_tables
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import Recipe, UserError, dump
from prismrec.config.redact import redacted
from prismrec.data.arrivals import Arrivals
from prismrec.data.windows import Slice
from prismrec.jobs.evaluate import measure
from prismrec.jobs.publish import export_checkpoint
from prismrec.serving.inference import InferenceModel
from prismrec.tracking.plots import plot_windows
from prismrec.tracking.promotion import Decision, Rival, decide_promotion
from prismrec.tracking.registry import CHAMPION, ModelVersionInfo, Registry
from prismrec.tracking.run import MlflowTracker
from prismrec.train.online import windowed
from prismrec.train.periods import Period, PeriodFiles

_log = logging.getLogger(__name__)
_POLL_S = 0.5
_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Office:
    """Where versions are published.

    Args:
        recipe: of the run.
        files: of the run.
        tracker: the run's record.
        console: where a line is shown for every version.
    """

    recipe: Recipe
    files: PeriodFiles
    tracker: MlflowTracker
    console: Console


class Publisher:
    """Publishes what the workers ask for, on a thread of its own. A context manager.

    What was asked for before the context ends is published before it is left, unless the process is
    to end at once; a resumed run publishes it then.

    Args:
        office: where.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prismrec-publisher", daemon=True)

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if kind is None or issubclass(kind, Exception):
            self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(_POLL_S)
            try:
                for period in self._office.files.periods():
                    if not period.is_published:
                        _attempt(self._office, period)
            except Exception:  # noqa: BLE001 - a full disk, shared storage that is away
                _log.exception("versions cannot be published now; tried again in %.0f s", _AGAIN_S)
                self._ended.wait(_AGAIN_S)


def _attempt(office: Office, period: Period) -> None:
    """Publish a version; one that cannot be is told and given up, and training goes on."""
    try:
        found = publish_period(office, period)
    except Exception as error:  # noqa: BLE001 - a lost version must not end the training
        text = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        _log.exception("period %d", period.number)
        found = {"period": period.number, "model": None, "reason": text}
    period.publish(found)
    what = found["model"] or "no version"
    office.console.print(
        f"period {period.number}: {what}; {found['reason']}", markup=False, soft_wrap=True
    )


def publish_period(office: Office, period: Period) -> dict[str, Any]:
    """Export a version, hold it against the trainer, register it, and promote it if it is better.

    Version and champion are measured on the same rows: those of the window after the version's last
    one, which neither was trained on.

    Returns:
        `period`, `step`, `model`, `is_champion`, `reason`, `metrics`, `champion` (what it was held
        against) with `champion_metrics`, and `delta` (vectors written, by table and set).

    Raises:
        UserError: the copy differs from the trainer, or the server refuses.
    """
    recipe, facts = office.recipe, period.facts()
    part = Slice(**facts["slice"])
    export_checkpoint(recipe, period.checkpoint, period.run)
    delta = _write_delta(office, period, facts)
    metrics = _measured(recipe, period.run.bundle, part)
    found = {
        "period": period.number,
        "step": facts["step"],
        "model": str(period.run.bundle),
        "metrics": metrics,
        "delta": delta,
    }
    office.tracker.log_metrics({f"period/{k}": v for k, v in metrics.items()}, facts["step"])
    draw_windows(office)
    if recipe.registered_name is None:
        return found | {"is_champion": False, "reason": "not registered, as the recipe says"}
    return found | _register(office, period, metrics, part)


def draw_windows(office: Office) -> Path | None:
    """The metrics of every window so far as a PNG file, recorded with the run too."""
    windows = [each for each in office.files.read_slices() if each["kind"] == "window"]
    if not windows:
        return None
    curves = {
        f"{task}/{kind}": [each["metrics"].get(f"{task}/{kind}") for each in windows]
        for task in office.recipe.task_names
        for kind in ("auc", "logloss", "pcoc")
    }
    times = [each["start"] for each in windows]
    path = plot_windows(times, curves, office.files.directory / "windows.png")
    office.tracker.log_file(path, "plots")
    return path


def gate_metric(recipe: Recipe) -> str:
    """The metric that a version must be better by."""
    chosen = None if recipe.online is None else recipe.online.metric
    return chosen or recipe.best_metric()


def _register(
    office: Office, period: Period, metrics: dict[str, float], part: Slice
) -> dict[str, Any]:
    recipe, tracker = office.recipe, office.tracker
    name = recipe.registered_name
    assert name is not None
    assert recipe.online is not None
    tracker.log_text(json.dumps(redacted(dump(recipe)), indent=1), "recipe.json")
    tracker.flush()
    registry = Registry(recipe.tracking.uri)
    info = _registered_before(registry, name, tracker.run_id, period)
    if info is None:
        tags = {"data": recipe.data.path, "period": str(period.number)}
        info = registry.register(tracker.run_id, period.run.bundle, name, metrics, tags)
    holder = registry.holder(name, CHAMPION)
    facts: dict[str, Any] = {"model": info.uri}
    if holder is None or holder.version == info.version:
        decision = Decision(True, f"{info.label} is the first to have the alias")
        if holder is None:
            registry.promote(info.uri, gate_metric(recipe), force=True)
    else:
        with registry.resolve(holder.uri) as found:
            rival = _measured(recipe, found.path, part)
        facts |= {"champion": holder.uri, "champion_metrics": rival}
        tracker.log_metrics({f"champion/{k}": v for k, v in rival.items()}, period.facts()["step"])
        this, other = Rival(info.label, metrics), Rival(holder.label, rival)
        metric = gate_metric(recipe)
        decision = decide_promotion(this, other, metric, recipe.online.min_gain)
        if decision.is_allowed:
            registry.promote(info.uri, metric, force=True)
    return facts | {"is_champion": decision.is_allowed, "reason": decision.reason}


def _registered_before(
    registry: Registry, name: str, run_id: str, period: Period
) -> ModelVersionInfo | None:
    """The version of a period that a run had registered when it was killed, if it had."""
    for info in registry.list_models():
        wanted = info.run == run_id and info.tags.get("period") == str(period.number)
        if info.name == name and wanted:
            return info
    return None


def _measured(recipe: Recipe, bundle: Path, part: Slice) -> dict[str, float]:
    """Metrics of an inference copy on the rows of a slice of the stream."""
    assert recipe.features.time is not None
    source = Arrivals(recipe.data.path, recipe.features.time).source(part.files)
    inference = InferenceModel.load(bundle)
    metrics, _ = measure(inference, windowed(recipe, part), source, "valid", _silent)
    return {key: value for key, value in metrics.items() if key.count("/") == 1}


def _write_delta(office: Office, period: Period, facts: dict[str, Any]) -> dict[str, int] | None:
    """The vectors touched since the newest delta before, or None where they are not asked for."""
    assert office.recipe.online is not None
    if not office.recipe.online.deltas:
        return None
    if period.deltas.exists():  # written before the run was killed
        return None
    with CheckpointTables(period.checkpoint) as tables:
        written = export_tables(
            tables,
            tables.chosen(None, None),
            period.deltas,
            _silent,
            _told_until(office.files, period),
        )
    return {f"{each.table}/{each.set_name}": each.rows for each in written}


def _told_until(files: PeriodFiles, period: Period) -> int:
    """The step up to which earlier deltas hold what training touched, 0 without one.

    A version that was given up has none: what it would have held belongs to the next.
    """
    before = [each for each in files.periods() if each.number < period.number]
    return max((each.facts()["step"] for each in before if each.deltas.exists()), default=0)


def _silent(done: int, total: int) -> None:
    """Nobody watches how far it is."""
