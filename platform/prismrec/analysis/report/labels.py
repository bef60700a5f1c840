"""Names of models that are short enough for an axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prismrec.analysis.subject import Subject

_TIME = re.compile(r"-\d{8}-\d{6}$")


@dataclass(frozen=True, slots=True)
class Label:
    """How plots call a model.

    Args:
        number: its position among the models of the report, which is that of its colour.
        short: its name on axes.
    """

    number: int
    short: str


def labels_of(subjects: Sequence[Subject], longest: int = 16) -> dict[str, Label]:
    """By name, short names that differ: as they are, or their ends behind the number that the page gives."""
    names = list(dict.fromkeys(each.name for each in subjects))
    if all(len(name) <= longest for name in names):
        return {name: Label(at, name) for at, name in enumerate(names)}
    ends = [_end(name) for name in names]
    ends = [end if len(end) <= longest else f"{end[: longest - 1]}…" for end in ends]
    return {
        name: Label(at, f"{at + 1}: {end}" if len(names) > 1 else end)
        for at, (name, end) in enumerate(zip(names, ends, strict=True))
    }


def _end(name: str) -> str:
    """Name and version of a registered model; name of a run, also of its checkpoint, without its time.

    >>> [_end(name) for name in ("models:/ctr/3", "out/ple-20261129-023716", "one/checkpoints/step-9")]
    ['ctr/3', 'ple', 'one']
    """
    if name.startswith("models:/"):
        return name.removeprefix("models:/")
    *folders, last = name.rstrip("/").split("/")
    if len(folders) > 1 and folders[-1] == "checkpoints":
        last = folders[-2]
    return _TIME.sub("", last) or last
