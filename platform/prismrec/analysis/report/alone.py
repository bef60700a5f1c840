"""Of the chapter on entanglement: the models of one task that others are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismrec.analysis.subject import FieldRows, Subject
from prismrec.train.metrics.arrays import Ints, mix64


@dataclass(frozen=True, slots=True)
class Alone:
    """The models of task A alone and of task B alone.

    Args:
        first: the model of A.
        second: the model of B.
    """

    first: Subject
    second: Subject

    @property
    def tasks(self) -> tuple[str, str]:
        """Names of A and B."""
        return self.first.recipe.task_names[0], self.second.recipe.task_names[0]


def models_alone(subjects: Sequence[Subject]) -> Alone | None:
    """The first model of one task, and the first one of another task."""
    single = [each for each in subjects if len(each.recipe.tasks) == 1]
    for other in single:
        if other.recipe.task_names != single[0].recipe.task_names:
            return Alone(single[0], other)
    return None


def alone_missing(subjects: Sequence[Subject], alone: Alone | None) -> Iterator[str]:
    """Which models of one task are not there, and which were not used."""
    single = {each.recipe.task_names[0] for each in subjects if len(each.recipe.tasks) == 1}
    several = next((each for each in subjects if len(each.recipe.tasks) > 1), None)
    if alone is not None:
        for name in sorted(single - set(alone.tasks)):
            yield (
                f"only the tasks {' and '.join(alone.tasks)} were held against each other; to compare "
                f"with {name}, pass its model first"
            )
        return
    if several is None:
        yield (
            "contradictory pairs need a model of one task for each of two tasks, and one of both; train "
            "and pass them together"
        )
        return
    wanted = [name for name in several.recipe.task_names if name not in single]
    needed = wanted[: 2 - min(1, len(single))]
    yield (
        "contradictory pairs and gains need a model of one task for each of two tasks, and there "
        f"{'is one' if single else 'is none'}; train the recipe of {several.name} once more with only the "
        f"task {' and once with only '.join(f'{name!r}' for name in needed)}, and pass "
        f"{'that' if len(needed) == 1 else 'both'} beside it"
    )


def one_id(rows: FieldRows) -> Ints | None:
    """(B,) a number for the id of each row of a batch, below 2^31; None where a row has none or several.

    An id of several rows of its table is told by all of them.
    """
    lengths = rows.lengths
    if not len(lengths):
        return np.zeros(0, np.int64)
    width = int(lengths[0])
    if width < 1 or bool((lengths != width).any()):
        return None
    each = rows.rows.view(len(lengths), width).numpy()
    if width == 1:
        return each[:, 0].astype(np.int64)
    mixed = np.zeros(len(lengths), np.uint64)
    for column in range(width):
        mixed = mix64(mixed ^ each[:, column].astype(np.uint64))
    return (mixed >> np.uint64(33)).astype(np.int64)
