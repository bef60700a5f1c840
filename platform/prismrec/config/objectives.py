"""Recipe sections of what a task's logit is trained towards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from prismrec.config.errors import nearest
from prismrec.config.external import PATTERN
from prismrec.config.section import Section


class BceRankNet(Section):
    """`alpha * BCE + (1 - alpha) * RankNet`, over all pairs of a positive and a negative row."""

    name: Literal["bce_ranknet"]
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Share of the cross-entropy."""
    group: bool = False
    """Compare only rows of one group (`features.group`); otherwise all rows of the batch."""
    reduction: Literal["pair_mean", "group_mean"] = "pair_mean"
    """Mean over all pairs, or over groups of the mean of each group's pairs."""
    weighted: bool = True
    """A pair counts the product of its rows' weights; otherwise every pair counts 1."""


class BceList(Section):
    """`alpha * BCE + (1 - alpha) * ListNet`, the softmax over the batch; it moves the calibration."""

    name: Literal["bce_list"]
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Share of the cross-entropy."""


class BceRcr(Section):
    """`alpha * BCE + (1 - alpha) * RCR`, a list loss whose best score is the probability."""

    name: Literal["bce_rcr"]
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Share of the cross-entropy."""


class Jrc(Section):
    """`alpha * BCE + (1 - alpha) * generative`: two logits per task, whose difference is served."""

    name: Literal["jrc"]
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the cross-entropy."""
    group: bool = False
    """The context of a row is its group (`features.group`); otherwise the whole batch."""
    exclude_same_label: bool = False
    """Leave other rows with the row's own label out of its context."""


class Focal(Section):
    """Cross-entropy times `(1 - p)^gamma`, p the probability of the row's own label."""

    name: Literal["focal"]
    gamma: float = Field(default=2.0, ge=0)
    """How fast rows that are already right stop to count; 0 is cross-entropy."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of positives, 1 - alpha that of negatives; 1 for both if not given."""


class Fnw(Section):
    """Conversions that come late: rows are there at once as negatives and again when they convert, and
    are weighted so that the probability comes out (`prismrec data emissions --rule copies`).
    """

    name: Literal["fnw"]


class Fnc(Section):
    """As `fnw`, but rows are not weighted: what is served is worked back from the logit, p = b / (1 - b)."""

    name: Literal["fnc"]


class EsDfm(Section):
    """Conversions that come late: rows are there after a waiting window, and again when they convert
    later (`prismrec data emissions --rule late_copies`).
    """

    name: Literal["es_dfm"]
    late: str
    """Task with the label `late`: the row converts after the waiting window."""
    real_negative: str
    """Task with the label `real_negative`: a row that had not converted in the window never does."""


class Defer(Section):
    """Conversions that come late: rows are there after a waiting window, and all of them once more with
    their final label (`prismrec data emissions --rule real_negatives`).
    """

    name: Literal["defer"]
    late: str
    """Task with the label `late`: the conversion, where there is one, comes after the waiting window."""


LossSection = BceRankNet | BceList | BceRcr | Jrc | Focal | Fnw | Fnc | EsDfm | Defer
"""A loss with settings of its own."""

LOSSES: dict[str, type[LossSection]] = {
    "bce_ranknet": BceRankNet,
    "bce_list": BceList,
    "bce_rcr": BceRcr,
    "jrc": Jrc,
    "focal": Focal,
    "fnw": Fnw,
    "fnc": Fnc,
    "es_dfm": EsDfm,
    "defer": Defer,
}
"""The section of every such loss, by its name."""


def loss_of(value: Any) -> str | LossSection:
    """A task's loss as the recipe gives it: a name, or `{name = ..., and its settings}`.

    Raises:
        ValueError: there is no such loss.
    """
    if isinstance(value, LossSection):
        return value
    settings = value if isinstance(value, dict) else {"name": value}
    name = settings.get("name")
    if not isinstance(name, str):
        raise ValueError("needs a name; " + nearest("", ["bce", *LOSSES]))
    if name in LOSSES:
        return LOSSES[name].model_validate(settings)
    if name != "bce" and not re.match(PATTERN, name):
        raise ValueError(
            f"unknown loss '{name}'; {nearest(name, ['bce', *LOSSES])}; "
            "a loss of your own is 'package.module:function'"
        )
    if len(settings) > 1:
        raise ValueError(f"'{name}' has no settings; leave out all but its name")
    return name


def objective_problems(
    losses: Sequence[str | LossSection], tasks: Sequence[str], group: str | None
) -> Iterator[str]:
    """What the losses of the tasks, in their order, lack elsewhere in the recipe."""
    for index, loss in enumerate(losses):
        for key in ("late", "real_negative"):
            named = getattr(loss, key, None)
            where = f"tasks[{index}].loss.{key}"
            if named is not None and named not in tasks:
                yield f"{where}: no task '{named}'; {nearest(named, tasks)}"
            elif named == tasks[index]:
                yield f"{where}: '{named}' is the task itself; name the one that watches the delays"
        if getattr(loss, "group", False) and group is None:
            yield (
                f"features.group: tasks[{index}].loss.group = true compares rows of a group; name "
                "the column of groups, or leave group out"
            )
