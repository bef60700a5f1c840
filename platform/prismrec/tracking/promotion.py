"""May a model version take an alias? A decision with its reason, made without any server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prismrec.config import UserError, nearest

_HIGHER = ("auc", "gauc", "rig")
_LOWER = ("logloss", "ne", "ece")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a promotion may go ahead, and why.

    Args:
        is_allowed: the answer.
        reason: one sentence with both numbers, where there are two.
    """

    is_allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rival:
    """A model version and what it measured on test data.

    Args:
        label: how to speak of it, such as `ctr version 3`.
        metrics: by name, such as `click/auc`.
    """

    label: str
    metrics: Mapping[str, float]


def decide_promotion(
    candidate: Rival, holder: Rival | None, metric: str, min_gain: float
) -> Decision:
    """Let the candidate pass where it is better than the holder of the alias by `min_gain`.

    Args:
        candidate: the version to promote.
        holder: the version that has the alias now, None where nobody has.
        metric: `task/auc`-style name. AUC, GAUC and RIG are better high; LogLoss, NE and ECE low;
            PCOC near 1.
        min_gain: smallest gain; 0 lets an equal one pass.

    Raises:
        UserError: the candidate has no such metric, or it has no better and worse.
    """
    if holder is None:
        return Decision(True, f"{candidate.label} is the first to have the alias")
    new, old = _value(candidate, metric), holder.metrics.get(metric)
    if old is None:
        return Decision(
            False,
            f"{holder.label} has no '{metric}' to compare with; choose a metric that both have, "
            "or promote it by force",
        )
    gain = _gain(new, old, metric)
    numbers = (
        f"{metric} of {candidate.label} is {new:.6f} against {old:.6f} of {holder.label}: "
        f"a gain of {gain:+.6f}"
    )
    if gain >= min_gain:
        return Decision(True, f"{numbers}, at least {min_gain:g} is asked for")
    return Decision(
        False,
        f"{numbers}, but at least {min_gain:g} is asked for; train on, or promote it by force",
    )


def _value(rival: Rival, metric: str) -> float:
    value = rival.metrics.get(metric)
    if value is None:
        raise UserError(
            f"{rival.label} has no test metric '{metric}'; {nearest(metric, rival.metrics)}"
        )
    return value


def _gain(new: float, old: float, metric: str) -> float:
    """How much better `new` is; NaN, which passes no comparison, where either is."""
    kind = metric.rpartition("/")[2]
    if kind in _HIGHER:
        return new - old
    if kind in _LOWER:
        return old - new
    if kind == "pcoc":
        return abs(old - 1) - abs(new - 1)
    raise UserError(f"metric '{metric}': {nearest(kind, (*_HIGHER, *_LOWER, 'pcoc'))}")
