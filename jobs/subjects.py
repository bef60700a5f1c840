"""Models opened to be looked at, with rows of a data set as they see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa
import torch

from prismrec.analysis.subject import FieldRows, Sample, Subject
from prismrec.data.source import open_data
from prismrec.data.values import one_array
from prismrec.jobs.evaluate import check_not_empty, labelled, opened_model, split_tables
from prismrec.serving.inference import InferenceModel
from prismrec.serving.sides import Sides

BATCH = 4096


@dataclass(frozen=True, slots=True)
class OpenedSubject:
    """A model to look at, and where it came from.

    Args:
        subject: the model with its rows.
        run: the MLflow run that trained it, or None.
    """

    subject: Subject
    run: str | None


@contextmanager
def opened_subjects(
    models: Sequence[str], data: str, split: str, most_rows: int, uri: str
) -> Iterator[list[OpenedSubject]]:
    """Models, each with the first rows of a split as it sees them.

    Args:
        models: see `opened_model`.
        data: a data set with the columns and labels of every model.
        split: `train`, `valid` or `test` of each model's recipe, or `all` rows.
        most_rows: rows to take at most.
        uri: tracking URI of the registry.

    Raises:
        UserError: a model, the split or a column is missing, or no row is in the split.
    """
    with ExitStack() as stack:
        subjects = []
        for model in models:
            opened = stack.enter_context(opened_model(model, uri))
            rows = _Rows(opened.inference, data, split, most_rows)
            subjects.append(OpenedSubject(rows.subject(opened.name), opened.run))
        yield subjects


class _Rows:
    """The rows that one model is looked at on, kept as columns."""

    def __init__(self, inference: InferenceModel, data: str, split: str, most_rows: int) -> None:
        self._inference, self._data = inference, data
        source = open_data(data)
        parts, left = [], most_rows
        for table in split_tables(inference.recipe, source, split, inference.columns):
            if left <= 0:
                break
            if table.num_rows:
                parts.append(table.slice(0, left))
                left -= parts[-1].num_rows
        self._table = pa.concat_tables(parts).combine_chunks() if parts else None
        check_not_empty(self.num_rows, data, split)

    @property
    def num_rows(self) -> int:
        return 0 if self._table is None else self._table.num_rows

    def subject(self, name: str) -> Subject:
        inference = self._inference
        return Subject(
            name=name,
            recipe=inference.recipe,
            spec=inference.spec,
            model=inference.head,
            vectors=inference.vectors,
            samples=self._samples,
            num_rows=self.num_rows,
        )

    def _samples(self) -> Iterator[Sample]:
        inference = self._inference
        assert self._table is not None
        for start in range(0, self.num_rows, BATCH):
            table = self._table.slice(start, BATCH)
            arrays = {name: one_array(table.column(name)) for name in inference.columns}
            with torch.no_grad():
                inputs, fields = inference.inputs(Sides.checked(arrays, {}))
            labels, valid = labelled(table, inference.recipe.tasks, self._data)
            yield Sample(
                inputs=inputs,
                labels=torch.where(valid > 0, labels.float(), torch.nan),
                fields={
                    name: FieldRows(each.rows, each.lengths)
                    for name, each in zip(inference.spec.fields, fields, strict=True)
                },
                columns=arrays,
            )
