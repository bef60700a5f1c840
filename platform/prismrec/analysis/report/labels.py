"""Names of models that are short enough for an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismrec.analysis.subject import Subject


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
    """By name, short names that differ: as they are, or their ends behind the number the page gives them."""
    names = list(dict.fromkeys(each.name for each in subjects))
    if all(len(name) <= longest for name in names):
        return {name: Label(at, name) for at, name in enumerate(names)}
    ends = [_end(name)[-longest:] for name in names]
    return {
        name: Label(at, f"{at + 1}: {end}" if len(names) > 1 else end)
        for at, (name, end) in enumerate(zip(names, ends, strict=True))
    }


def _end(name: str) -> str:
    """The last part of a path, of a checkpoint that of its run; name and version of a registered model.

    >>> [_end(name) for name in ("models:/clicks/3", "out/first/", "out/first/checkpoints/step-120")]
    ['clicks/3', 'first', 'first']
    """
    if name.startswith("models:/"):
        return name.removeprefix("models:/")
    *folders, last = name.rstrip("/").split("/")
    if len(folders) > 1 and folders[-1] == "checkpoints":
        return folders[-2]
    return last
