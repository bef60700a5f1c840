"""A small model with random weights and a sample of rows, as analyses are given them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismrec.analysis.subject import FieldRows, Sample, Subject
from tests.unit.serving.world import make_world, random_raw


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def drawn_labels(rows: int, tasks: int = 2) -> Tensor:
    """(rows, tasks) float32 coins, the same every time."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 2, (rows, tasks), generator=generator).float()


def make_subject(
    folder: Path,
    columns: dict[str, Any] | None = None,
    labels: Tensor | None = None,
    batch: int = 16,
    **overrides: Any,
) -> Subject:
    """The model of `tests.unit.serving.world` on rows of raw columns, `batch` at a time."""
    columns = columns or random_raw(40)
    model = make_world(**overrides).model(folder)
    rows = len(columns["user_id"])
    held = drawn_labels(rows) if labels is None else labels

    def samples() -> Iterator[Sample]:
        for start in range(0, rows, batch):
            part = {name: values[start : start + batch] for name, values in columns.items()}
            with torch.no_grad():
                inputs, fields = model.inputs(model.sides(part, {}))
            of_fields = {
                name: FieldRows(each.rows, each.lengths)
                for name, each in zip(model.spec.fields, fields, strict=True)
            }
            yield Sample(inputs, held[start : start + batch], of_fields)

    return Subject(
        name=model.recipe.name,
        recipe=model.recipe,
        spec=model.spec,
        model=model.head,
        vectors=model.vectors,
        samples=samples,
        num_rows=rows,
    )
