"""Subjects in memory: a recipe of users and items, tables that a test plants, and rows that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prismrec.analysis.subject import FieldRows, Sample, Subject
from prismrec.config import from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.models import Inputs, spec_of
from prismrec.models.assembly import split_sets
from prismrec.serving.inference import build_head

NUM_USERS, NUM_ITEMS = 30, 20
SCHEMA = DataSchema(
    name="pairs",
    columns={
        "user": Column(kind="id", num_ids=NUM_USERS),
        "item": Column(kind="id", num_ids=NUM_ITEMS),
        "like": Column(kind="label"),
        "finish": Column(kind="label"),
        "buy": Column(kind="label"),
    },
)
SMALL: dict[str, Any] = {"hidden": [6], "tower": [4]}


@dataclass(frozen=True)
class Rows:
    """Rows that subjects are looked at on.

    Args:
        users: (n,) rows of the users' table.
        items: (n,) rows of the items' table.
        labels: (n,) by task, NaN where there is none.
    """

    users: np.ndarray
    items: np.ndarray
    labels: Mapping[str, np.ndarray]


def random_rows(count: int, seed: int = 0) -> Rows:
    """Pairs and labels that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    labels = {
        name: rng.integers(0, 2, count).astype(np.float32) for name in ("like", "finish", "buy")
    }
    return Rows(rng.integers(0, NUM_USERS, count), rng.integers(0, NUM_ITEMS, count), labels)


@dataclass
class Told:
    """A progress that remembers what it was told."""

    calls: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.calls.append((what, done, total))


def make_subject(
    name: str,
    model: dict[str, Any],
    tasks: Sequence[str],
    rows: Rows,
    planted: Mapping[tuple[str, str], Tensor] | None = None,
    sets: Sequence[dict[str, Any]] = ({"name": "only", "dim": 4},),
) -> Subject:
    """A model with drawn weights over drawn tables, or planted ones by (table, set)."""
    recipe = from_dict(
        {
            "name": "pairs",
            "data": {"path": "unused"},
            "features": {"sparse": ["user", "item"]},
            "embedding": {"sets": list(sets)},
            "model": model,
            "tasks": [{"name": task, "label": task} for task in tasks],
        }
    )
    spec = spec_of(recipe, SCHEMA)
    generator = torch.Generator().manual_seed(len(name))
    tables = {
        (table.name, each.name): torch.randn(table.rows, each.dim, generator=generator)
        for table in spec.tables
        for each in spec.sets_of(table)
    } | dict(planted or {})
    head = build_head(recipe, spec).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    by_field = {"user": torch.from_numpy(rows.users), "item": torch.from_numpy(rows.items)}
    labels = torch.from_numpy(np.stack([rows.labels[task] for task in tasks], 1))

    def samples() -> Iterator[Sample]:
        for start in range(0, len(rows.users), 64):
            at = slice(start, start + 64)
            looked_up = [
                torch.stack(
                    [tables[f, each.name][by_field[f][at]] for f in spec.fields_of(each)], 1
                )
                for each in split_sets(spec, recipe.model)[0]
            ]
            count = len(labels[at])
            ones = torch.ones(count, dtype=torch.int64)
            yield Sample(
                Inputs(looked_up, None, torch.zeros(count, 0)),
                labels[at],
                {name: FieldRows(each[at], ones) for name, each in by_field.items()},
            )

    return Subject(
        name,
        recipe,
        spec,
        head,
        lambda table, of_set, at: tables[table, of_set][at],
        samples,
        len(rows.users),
    )
