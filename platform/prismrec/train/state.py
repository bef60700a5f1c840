"""Everything a run needs to go on, besides weights and optimizer states."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """How far the run has come.

    Args:
        step: steps whose gradients are in the weights.
        rows_seen: rows of those steps, padding not counted.
        epoch: epoch of the next row.
        offsets: rows of that epoch already taken from each lane; empty at the start of an epoch.
        best: best score so far (larger is better), or None before the first evaluation.
        stale: evaluations since the best one.
        worse: evaluations that were not the best when they were made, in all.
        stopped_early: patience ran out.
    """

    step: int = 0
    rows_seen: int = 0
    epoch: int = 0
    offsets: list[int] = field(default_factory=list)
    best: float | None = None
    stale: int = 0
    worse: int = 0
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TrainState:
        """The state that `to_json` wrote."""
        return cls(**value)

    def judge(self, score: float, patience: int | None) -> bool:
        """Take a new score into account and say whether it is the best so far."""
        is_best = self.best is None or score > self.best
        self.best = score if is_best else self.best
        self.stale = 0 if is_best else self.stale + 1
        self.worse += not is_best
        self.stopped_early = patience is not None and self.stale >= patience
        return is_best


def score(metric: str, value: float) -> float:
    """A metric's value turned so that larger is better.

    >>> score("click/auc", 0.7), score("click/logloss", 0.6), score("click/pcoc", 0.9)
    (0.7, -0.6, -0.09999999999999998)
    """
    kind = metric.rpartition("/")[2]
    if kind == "pcoc":
        return -abs(value - 1)
    return -value if kind in ("logloss", "ne", "ece") else value
