"""Exact evaluation of the sharded model on one split."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.config import Recipe
from prismrec.config.calibration import CalibrationSection
from prismrec.data.batch import Batch
from prismrec.models.calibration import LogitMap, mapped
from prismrec.train.calibration import fit_calibration
from prismrec.train.metrics.bootstrap import Resampling
from prismrec.train.metrics.calibration import CalibrationCurve
from prismrec.train.metrics.evaluation import Evaluation
from prismrec.train.model import Leaf
from prismrec.train.propensity import Corrections
from prismrec.train.sharding import ShardedModel
from prismrec.train.state import TrainState, score

_log = logging.getLogger(__name__)

FREQUENCY = "frequency"
DOMAIN = "domain"
UNCALIBRATED = ("logloss", "ece", "pcoc")
"""Metrics that a calibration moves; it leaves every AUC as it is."""


@dataclass(slots=True)
class Report:
    """What an evaluation found.

    Args:
        metrics: see `Evaluation`.
        curves: calibration of each task.
        score: the metric that picks the best checkpoint, larger is better; None if not judged.
    """

    metrics: dict[str, float]
    curves: dict[str, CalibrationCurve]
    score: float | None = None

    def named(self, split: str) -> dict[str, float]:
        """The metrics with the split before their names."""
        return {f"{split}/{name}": value for name, value in self.metrics.items()}


@contextmanager
def evaluation_mode(sharded: ShardedModel) -> Iterator[None]:
    """No dropout, running moments, averaged weights, vectors sent in fp32: as it will be exported.

    Collective: every rank enters and leaves it between the same lookups.
    """
    ema = sharded.optimizers.ema
    sharded.dmp.eval()
    if ema:
        ema.swap()
    try:
        with sharded.wire.off():
            yield
    finally:
        if ema:
            ema.swap()
        sharded.dmp.train()


@contextmanager
def full_precision(leaf: Leaf) -> Iterator[None]:
    """No autocast: what is exported computes in fp32."""
    was_bf16, leaf.is_bf16 = leaf.is_bf16, False
    try:
        yield
    finally:
        leaf.is_bf16 = was_bf16


def predict_batch(sharded: ShardedModel, batch: Batch) -> Tensor:
    """Logits (B, T) of one batch, before any `Corrections`.

    Collective: every rank calls it with a batch of the same number of rows.
    """
    with torch.no_grad():
        _, output = sharded.dmp(batch)
    return output.logits  # type: ignore[no-any-return]


class Evaluator:
    """Runs the model over a split and computes every metric.

    Args:
        recipe: for tasks, groups and slices.
        sharded: the model.
        frequency: (rows of the table,) how often training saw each row of the table of
            `evaluate.frequency_of`, or None.
    """

    def __init__(
        self, recipe: Recipe, sharded: ShardedModel, frequency: Tensor | None = None
    ) -> None:
        self._recipe = recipe
        self._sharded = sharded
        self._frequency = frequency
        self._corrections = Corrections(recipe)
        self._slices = tuple(
            name
            for name, used in (
                (DOMAIN, recipe.features.domain is not None),
                (FREQUENCY, frequency is not None),
            )
            if used
        )

    def run(
        self, batches: Iterable[Batch], *, is_final: bool = False, maps: Sequence[LogitMap] = ()
    ) -> Report:
        """Metrics over the batches of all ranks; the final ones with intervals and curves.

        With the maps of a calibration they are those of the mapped logits, and `UNCALIBRATED` are
        some of what they were before.

        Collective: every rank calls it with the same number of batches.
        """
        tasks = self._recipe.task_names
        evaluation = Evaluation(
            tasks, self._slices, grouped=self._recipe.features.group is not None
        )
        before = Evaluation(tasks, (), grouped=False) if maps else None
        with evaluation_mode(self._sharded):
            for logits, batch in self._predicted(batches):
                if before is not None:
                    rows = (batch.labels, batch.valid, batch.weights, batch.group)
                    before.update(logits, *rows, {})
                evaluation.update(
                    mapped(maps, logits),
                    batch.labels,
                    batch.valid,
                    batch.weights,
                    batch.group,
                    {name: self._ids(name, batch) for name in self._slices},
                )
        metrics = evaluation.compute()
        if before is not None:
            metrics |= {
                f"{task}/uncalibrated_{kind}": value
                for task, kind, value in _parts_of(before.compute())
                if kind in UNCALIBRATED
            }
        resamples = self._recipe.evaluate.bootstrap
        if is_final and resamples:
            resampling = Resampling(count=resamples, seed=self._recipe.seed)
            for task in tasks:
                low, high = evaluation.auc_interval(task, resampling)
                metrics |= {f"{task}/auc_low": low, f"{task}/auc_high": high}
        curves = {t: evaluation.calibration_curve(t) for t in tasks} if is_final else {}
        return Report(metrics, curves)

    def fit(self, section: CalibrationSection, batches: Iterable[Batch]) -> list[LogitMap]:
        """The maps of a calibration, fitted on the batches of all ranks with autocast off.

        Collective: every rank calls it with the same number of batches.
        """
        sharded = self._sharded
        with evaluation_mode(sharded), full_precision(sharded.leaf):
            rows = self._predicted(batches)
            return fit_calibration(section, self._recipe.task_names, rows, sharded.ranks)

    def _predicted(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Batch]]:
        """Logits (B, T) as they are served but for a calibration, and their batches."""
        device = self._sharded.ranks.device
        for batch in batches:
            logits = predict_batch(self._sharded, batch.to(device))
            yield self._corrections(logits, batch), batch

    def judge(self, report: Report, state: TrainState) -> None:
        """Tell the state whether this is the best evaluation so far.

        A metric without a value (all labels equal, say) judges nothing: the evaluation counts
        neither as better nor as worse, and the log says so.
        """
        metric = self._recipe.best_metric()
        value = report.metrics.get(metric, math.nan)
        if math.isnan(value):
            _log.warning("step %d: %s has no value on the validation rows", state.step, metric)
            return
        report.score = score(metric, value)
        state.judge(report.score, self._recipe.evaluate.patience)

    def _ids(self, name: str, batch: Batch) -> Tensor:
        if name == DOMAIN:
            return batch.domain
        feature = self._recipe.evaluate.frequency_of
        assert feature is not None
        assert self._frequency is not None
        in_sequence = batch.sequence is not None and feature in batch.sequence.keys()
        ids = batch.sequence if in_sequence else batch.sparse
        assert ids is not None
        return frequency_bucket(self._frequency[ids[feature].values()])


def _parts_of(metrics: dict[str, float]) -> Iterator[tuple[str, str, float]]:
    """Task, kind and value of every metric of a whole task."""
    for name, value in metrics.items():
        task, _, kind = name.partition("/")
        yield task, kind, value


def frequency_bucket(counts: Tensor) -> Tensor:
    """Number of decimal digits of each count: 0 never seen, 1 for 1-9, 2 for 10-99, ...

    >>> frequency_bucket(torch.tensor([0, 1, 9, 10, 123])).tolist()
    [0, 1, 1, 2, 3]
    """
    digits = torch.floor(torch.log10(counts.clamp(min=1).double())) + 1
    return torch.where(counts > 0, digits, 0).to(torch.int64)
