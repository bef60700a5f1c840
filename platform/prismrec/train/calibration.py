"""Fitting a calibration on held-out rows of all ranks.

What is fitted are sums over fine bins of the logits, which add up over ranks: any number of ranks
gives the same map. Notation: T tasks, K bins, z logits.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prismrec.config.calibration import CalibrationSection
from prismrec.data.batch import Batch
from prismrec.models.calibration import IDENTITY, LogitMap
from prismrec.train.process_group import Ranks

_log = logging.getLogger(__name__)

FILE = "logit_maps.json"
"""Name of the maps' file in a checkpoint."""
REACH = 20.0
"""Logits beyond are counted in the outermost bins."""
_LEAST_RISE = 1e-6
"""Of the logits of neighbouring pools: rates that are equal but for rounding are one pool."""
_HALVINGS = 60
_SLOPES = (0.01, 100.0)
"""Bounds of the slope of a line: a map must rise."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows of one task by logit, lowest first; only bins with rows; k bins.

    Args:
        weight: (k,) above 0.
        positives: (k,) weight of the positives.
        logit: (k,) mean logit, ascending.
    """

    weight: Doubles
    positives: Doubles
    logit: Doubles

    @property
    def has_both(self) -> bool:
        """Whether there are positives and negatives."""
        return 0 < float(self.positives.sum()) < float(self.weight.sum())


class LogitSums:
    """Sums by bin of the logits of every task.

    Args:
        num_tasks: T.
        bins: K.
    """

    def __init__(self, num_tasks: int, bins: int) -> None:
        self._bins = bins
        self._sums = torch.zeros(3, num_tasks * bins, dtype=torch.float64)
        self._first = torch.arange(num_tasks) * bins

    def add(self, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Take rows: logits, labels and weights (B, T), the weight 0 where a row does not count."""
        z, w = logits.double(), weights.double()
        place = ((z.clamp(-REACH, REACH) + REACH) * (self._bins / (2 * REACH))).long()
        cells = (self._first + place.clamp(max=self._bins - 1)).flatten()
        labels = torch.where(weights > 0, labels, 0)
        for sums, values in zip(self._sums, (w, w * labels, w * z), strict=True):
            sums.index_add_(0, cells, values.flatten())

    def cells(self, ranks: Ranks) -> list[Cells]:
        """The rows of all ranks, by task.

        Collective: every rank calls it.
        """
        sums = ranks.sum(self._sums.to(ranks.device)).cpu().view(3, -1, self._bins).numpy()
        return [_filled(sums[:, task]) for task in range(sums.shape[1])]


def _filled(sums: Doubles) -> Cells:
    weight, positives, logits = sums[:, sums[0] > 0]
    return Cells(weight, positives, logits / weight)


def fit_map(method: str, cells: Cells) -> LogitMap:
    """The map of one task by `isotonic`, `platt` or `temperature`.

    Raises:
        ValueError: the rows have one label only, which no finite map fits.
    """
    if not cells.has_both:
        raise ValueError("a map is fitted to rows of both labels")
    return _FITS[method](cells)


def isotonic(cells: Cells) -> LogitMap:
    """Pools neighbours until the rates rise (PAV), and joins the centres of the pools by lines.

    Pools without a positive or without a negative, which can only be the outermost, are joined to
    their neighbours: their logits would be infinite. Beyond the outermost centres the slope is 1.

    Source: Ayer et al. 1955; Zadrozny and Elkan, KDD 2002. Lines in place of steps are our choice,
    so that rows of one pool keep their order.
    """
    pools: list[list[float]] = []  # of each its weight, positives and sum of logits
    for weight, positives, logit in zip(
        cells.weight, cells.positives, cells.logit * cells.weight, strict=True
    ):
        pools.append([float(weight), float(positives), float(logit)])
        while len(pools) > 1 and not _rises(pools[-2], pools[-1]):
            _join(pools, len(pools) - 2)
    while pools[0][1] == 0:
        _join(pools, 0)
    while pools[-1][1] == pools[-1][0]:
        _join(pools, len(pools) - 2)
    x, y = zip(*map(_knot, pools), strict=True)
    return LogitMap(x, y, 1.0, 1.0)


def _rises(before: list[float], after: list[float]) -> bool:
    (x, y), (next_x, next_y) = _knot(before), _knot(after)
    return x < next_x and y + _LEAST_RISE < next_y


def _knot(pool: list[float]) -> tuple[float, float]:
    """Mean logit of a pool, and the logarithm of its odds."""
    weight, positives, logit = pool
    if positives in (0, weight):
        return logit / weight, math.inf if positives else -math.inf
    return logit / weight, math.log(positives) - math.log(weight - positives)


def _join(pools: list[list[float]], at: int) -> None:
    after = pools.pop(at + 1)
    pools[at] = [a + b for a, b in zip(pools[at], after, strict=True)]


def temperature(cells: Cells) -> LogitMap:
    """`z / temperature` of least log loss (Guo et al., ICML 2017)."""
    return LogitMap.line(_slope(cells, lambda slope: _push(cells, slope, 0.0)[0]), 0.0)


def platt(cells: Cells) -> LogitMap:
    """`a z + b` of least log loss (Platt 1999, without its prior)."""

    def push(slope: float) -> float:
        return _push(cells, slope, _offset(cells, slope))[0]

    slope = _slope(cells, push)
    return LogitMap.line(slope, _offset(cells, slope))


def _push(cells: Cells, slope: float, offset: float) -> tuple[float, float]:
    """Derivatives of the summed log loss by slope and offset; both rise, for it is convex."""
    gap = cells.weight * _sigmoid(slope * cells.logit + offset) - cells.positives
    return float((gap * cells.logit).sum()), float(gap.sum())


def _slope(cells: Cells, push: Callable[[float], float]) -> float:
    """Where a rising function of the slope is 0, or the nearest bound."""
    low, high = np.log(_SLOPES)
    return float(np.exp(_root(lambda log: push(float(np.exp(log))), low, high)))


def _offset(cells: Cells, slope: float) -> float:
    """The offset at which as many positives are predicted as there are."""
    reach = slope * float(np.abs(cells.logit).max()) + 50
    return _root(lambda offset: _push(cells, slope, offset)[1], -reach, reach)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function passes 0 between two bounds, by halving; a bound if nowhere."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if rising(middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _sigmoid(z: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))


_FITS: dict[str, Callable[[Cells], LogitMap]] = {
    "isotonic": isotonic,
    "platt": platt,
    "temperature": temperature,
}


def fit_calibration(
    section: CalibrationSection,
    tasks: Sequence[str],
    rows: Iterable[tuple[Tensor, Batch]],
    ranks: Ranks,
) -> list[LogitMap]:
    """A map for every task; the identity, with a warning, for one whose rows have one label only.

    Collective: every rank calls it with as many batches.

    Args:
        section: method and bins.
        tasks: names of the T tasks.
        rows: logits (B, T) as they are served but for the map, and their batches.
        ranks: whose rows count.
    """
    sums = LogitSums(len(tasks), section.bins)
    for logits, batch in rows:
        sums.add(logits, batch.labels.cpu(), (batch.valid * batch.weights).cpu())
    maps = []
    for task, cells in zip(tasks, sums.cells(ranks), strict=True):
        if cells.has_both:
            maps.append(fit_map(section.method, cells))
        else:
            _log.warning("calibration: the rows of task '%s' have one label only", task)
            maps.append(IDENTITY)
    return maps


def write_maps(path: Path, tasks: Sequence[str], maps: Sequence[LogitMap]) -> None:
    """Put down the maps by task; nobody ever sees half of the file."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    text = {task: each.to_json() for task, each in zip(tasks, maps, strict=True)}
    scratch.write_text(json.dumps(text) + "\n")
    scratch.replace(path)


def read_maps(path: Path, tasks: Sequence[str]) -> list[LogitMap]:
    """The maps of such a file, in the order of the tasks; none where there is no file."""
    if not path.exists():
        return []
    stored = json.loads(path.read_text())
    return [LogitMap.from_json(stored[task]) for task in tasks]
