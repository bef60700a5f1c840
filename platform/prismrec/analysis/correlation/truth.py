"""Mutual information of behaviours and labels in a data set: what a sequence module has to find.

Two passes over Parquet, a batch of rows at a time: one over the target's column and the label, which tells
the most frequent target categories, and one that counts. What is kept are counts: one for each category that
is a target, then K x K x P x 2 of them, whatever the number of rows.

Source: "Temporal Interest Network for User Response Prediction" (WWW 2024), section 2.

Notation: n rows of a batch, T behaviours of all of them, K categories, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prismrec.analysis.correlation.information import Counts
from prismrec.analysis.subject import Progress, Subject
from prismrec.config import Recipe, UserError
from prismrec.config.sequences import SequenceFeature
from prismrec.data.behaviours import column_kinds, read_behaviours
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.lookup import filtered_tables
from prismrec.data.source import DataSource, open_data
from prismrec.data.values import ints, label_and_valid, one_array
from prismrec.train.metrics.arrays import Ints

BATCH = 16_384
"""Rows that are looked at together."""
DOING = "counting behaviours"
"""What progress calls the passes."""


@dataclass(frozen=True, slots=True)
class Question:
    """Behaviours of which column are held against which targets and which label.

    Args:
        sequence: a sequence with one column of behaviours, their categories.
        target: column with the category of a row's target.
        label: column of 0 and 1.
        valid: column that is 1 in the sample space of the label; None where all rows are in it.
        time: column with the time of a row, for sequences with `times`.
        conditions: rows that count, as in `data.splits`; all if there are none.
        categories: the most frequent target categories, which are those of behaviours too; K in all.
        positions: P, counted from the newest behaviour.
        also: ids of target categories that are looked at besides, the last of the K where they are not
            among the most frequent.
    """

    sequence: SequenceFeature
    target: str
    label: str
    valid: str | None = None
    time: str | None = None
    conditions: tuple[str, ...] = ()
    categories: int = 10
    positions: int = 10
    also: tuple[int, ...] = ()

    @property
    def column(self) -> str:
        """List column with the categories of behaviours."""
        return self.sequence.behaviours[0].column

    @property
    def label_columns(self) -> list[str]:
        """Columns that say what the label of a row is, and whether it has one."""
        return [self.label] if self.valid is None else [self.label, self.valid]

    @property
    def columns(self) -> list[str]:
        """Every column that is read."""
        times = [self.time] if self.sequence.times is not None and self.time is not None else []
        names = [*self.sequence.columns, self.target, *self.label_columns, *times]
        return list(dict.fromkeys(names))


def question_of(
    subject: Subject,
    task: str | None = None,
    conditions: tuple[str, ...] = (),
    categories: int = 10,
    positions: int = 10,
) -> Question | None:
    """What a model's first sequence suggests: the behaviours whose target has the fewest ids.

    Args:
        subject: the model; None comes back where its recipe has no sequence.
        task: the task whose label counts; its first one if not given.
        conditions: rows that count, as in `data.splits`.
        categories: see `Question`.
        positions: at most; see `Question`.

    Raises:
        UserError: there is no such task.
    """
    recipe = subject.recipe
    if not recipe.features.sequences:
        return None
    sequence = recipe.features.sequences[0]
    of_rows = {each.target: subject.spec.table_of(each.target).rows for each in sequence.behaviours}
    chosen = min(sequence.behaviours, key=lambda each: of_rows[each.target])
    tasks = {each.name: each for each in recipe.tasks}
    if task is not None and task not in tasks:
        raise UserError(f"task '{task}': {subject.name} has {', '.join(tasks)}")
    of_task = recipe.tasks[0] if task is None else tasks[task]
    return Question(
        sequence=sequence.model_copy(update={"behaviours": (chosen,)}),
        target=source_of(recipe, chosen.target),
        label=of_task.label,
        valid=of_task.valid,
        time=recipe.features.time,
        conditions=conditions,
        categories=categories,
        positions=min(positions, sequence.max_length),
    )


def source_of(recipe: Recipe, feature: str) -> str:
    """The column of a sparse feature."""
    return next(each.source for each in recipe.features.sparse if each.name == feature)


def count_behaviours(question: Question, data: str, progress: Progress) -> Counts:
    """Count behaviours by target category, category, position and label.

    Every row of the data that meets the conditions and has a label counts once: a data set
    whose negatives are a sample gives the mutual information of that sample.

    Args:
        question: what is counted.
        data: a data set.
        progress: told the row groups read, of all in both passes.

    Raises:
        UserError: a column is missing or of the wrong kind, or no row has a target and a label, or one of
            the target categories asked for.
    """
    source = open_data(data)
    _check(question, source)
    categories = _frequent(question, source, progress)
    if not len(categories):
        raise UserError(
            f"{data}: no row that meets {list(question.conditions) or 'no condition'} has a "
            f"'{question.target}' and a '{question.label}', so nothing can be said of behaviours; "
            "choose other rows"
        )
    tally = Tally(categories, question.positions)
    groups = len(source.group_rows)
    for done, table in enumerate(_tables(question, source, question.columns), 1):
        for batch in _batches(table):
            tally.add(events_of(question, batch, categories), _labels(question, batch, data))
        progress(DOING, groups + done, 2 * groups)
    return tally.counts()


@dataclass(frozen=True, slots=True)
class Events:
    """The behaviours of a batch that are of a category and at a position that counts.

    Args:
        of_target: (n,) place of the row's target category among K, -1 for any other.
        reach: (n,) positions up to P that the row has behaviours at.
        kept: (E,) which of the batch's T behaviours each event is.
        row: (E,) its row.
        category: (E,) place of its category among K.
        cell: (E,) its cell of a map (K, K, P), flat.
    """

    of_target: Ints
    reach: Ints
    kept: Ints
    row: Ints
    category: Ints
    cell: Ints


def events_of(question: Question, columns: Mapping[str, pa.Array], categories: Ints) -> Events:
    """The behaviours that count, as the model's reader sees them: early enough, the newest ones.

    Args:
        question: which columns.
        columns: at least its columns, by name.
        categories: (K,) ids of the categories.

    Raises:
        UserError: the lists of a row differ in length.
    """
    bag = read_behaviours(question.sequence, columns, question.time, "row {} of a batch".format)[0]
    places = _Places(categories)
    lengths = np.diff(bag.offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    position = bag.offsets[row + 1] - np.arange(len(row))
    of_target = places(ints(columns[question.target], NULL_ID))
    of_behaviour = places(bag.values)
    at_target = of_target[row]
    kept = np.flatnonzero((position <= question.positions) & (of_behaviour >= 0) & (at_target >= 0))
    size = len(categories)
    pair = at_target[kept] * size + of_behaviour[kept]
    return Events(
        of_target=of_target,
        reach=np.minimum(lengths, question.positions),
        kept=kept,
        row=row[kept],
        category=of_behaviour[kept],
        cell=pair * question.positions + position[kept] - 1,
    )


class Tally:
    """Adds up batches.

    Args:
        categories: (K,) ids.
        positions: P.
    """

    def __init__(self, categories: Ints, positions: int) -> None:
        size = len(categories)
        self._categories = categories
        self._behaviours = np.zeros(size * size * positions * 2, np.int64)
        self._reached = np.zeros((size, positions + 1, 2), np.int64)

    def add(self, events: Events, labels: Ints) -> None:
        """Count a batch.

        Args:
            events: of its rows.
            labels: (n,) 0 or 1, -1 for rows without one.
        """
        of_event = labels[events.row]
        cells = (events.cell * 2 + of_event)[of_event >= 0]
        self._behaviours += np.bincount(cells, minlength=len(self._behaviours))
        kept = (labels >= 0) & (events.of_target >= 0)
        rows = np.ravel_multi_index(
            (events.of_target[kept], events.reach[kept], labels[kept]), self._reached.shape
        )
        counted = np.bincount(rows, minlength=self._reached.size)
        self._reached += counted.reshape(self._reached.shape)

    def counts(self) -> Counts:
        """What was counted so far."""
        size, positions = len(self._categories), self._reached.shape[1] - 1
        # A row with a history of length r has a behaviour at every position up to r.
        at_least = self._reached[:, ::-1].cumsum(1)[:, ::-1]
        return Counts(
            categories=self._categories,
            behaviours=self._behaviours.reshape(size, size, positions, 2),
            rows=at_least[:, 0],
            long_rows=at_least[:, 1:],
        )


class _Places:
    """Where ids stand among the categories, -1 for others."""

    def __init__(self, categories: Ints) -> None:
        self._order = np.argsort(categories)
        self._sorted = categories[self._order]

    def __call__(self, ids: Ints) -> Ints:
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        found: Ints = np.where(self._sorted[at] == ids, self._order[at], -1)
        return found


def _frequent(question: Question, source: DataSource, progress: Progress) -> Ints:
    """(K,) the target categories with the most labelled rows, of equal ones the lower id first, and others."""
    ids, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    groups = len(source.group_rows)
    columns = list(dict.fromkeys([question.target, *question.label_columns]))
    for done, table in enumerate(_tables(question, source, columns), 1):
        for batch in _batches(table):
            targets = ints(batch[question.target], NULL_ID)
            has_label = _labels(question, batch, source.path) >= 0
            found, times = np.unique(targets[has_label & (targets != NULL_ID)], return_counts=True)
            ids, place = np.unique(np.concatenate([ids, found]), return_inverse=True)
            counts = np.bincount(
                place, weights=np.concatenate([counts, times]), minlength=len(ids)
            ).astype(np.int64)
        progress(DOING, done, 2 * groups)
    for category in question.also:
        if category not in ids:
            raise UserError(
                f"{source.path}: no row that counts has {category} as '{question.target}', so nothing can be "
                f"said of it; the most frequent is {ids[np.argmax(counts)] if len(ids) else 'none'}"
            )
    frequent = ids[np.lexsort((ids, -counts))[: question.categories]]
    added = [each for each in dict.fromkeys(question.also) if each not in frequent]
    return np.concatenate([frequent, np.array(added, np.int64)])


def _labels(question: Question, columns: Mapping[str, pa.Array], where: str) -> Ints:
    """(n,) 0 or 1, -1 for rows outside the sample space or without a label."""
    space = None if question.valid is None else (question.valid, columns[question.valid])
    values, valid = label_and_valid((question.label, columns[question.label]), space, where)
    labels: Ints = np.where(valid > 0, values, -1).astype(np.int64)
    return labels


def _tables(question: Question, source: DataSource, columns: list[str]) -> Iterator[pa.Table]:
    return filtered_tables(source, question.conditions, columns, "conditions")


def _batches(table: pa.Table) -> Iterator[dict[str, pa.Array]]:
    for start in range(0, table.num_rows, BATCH):
        part = table.slice(start, BATCH)
        yield {name: one_array(part.column(name)) for name in part.column_names}


def _check(question: Question, source: DataSource) -> None:
    """Refuse columns that are not there or cannot be what they are taken for."""
    schema, where = source.schema, "correlation"
    for name, kind in column_kinds(question.sequence):
        schema.column(name, (kind,), where)
    schema.column(question.target, ("id",), where)
    schema.column(question.label, ("label",), where)
    if question.valid is not None:
        schema.column(question.valid, ("label", "number"), where)
    if question.time is not None and question.sequence.times is not None:
        schema.column(question.time, ("id", "label", "time", "number", "other"), where)
    if question.positions < 1 or question.categories < 1:
        raise UserError(
            f"correlation: at least one category and one position are needed, got "
            f"{question.categories} and {question.positions}"
        )
