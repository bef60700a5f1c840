"""A model with tables of planted shape, as an analysis sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.analysis.subject import FieldRows, Sample, Subject
from prismrec.config import from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.models import Inputs, spec_of
from prismrec.serving.inference import build_head

ROWS, WIDTH, RANK = 100, 16, 3
FLAT = torch.linalg.qr(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(7)))[0]
"""(ROWS, WIDTH) with orthogonal columns: it uses every dimension alike."""


@dataclass(frozen=True)
class Planted:
    """What tests need of a subject with tables, such as `flat` and `sunk`, in two sets, `a` and `b`.

    In set `a` the last table has rank 3, its three directions alike; everything else is flat.
    """

    subject: Subject
    tables: dict[tuple[str, str], Tensor]
    looked_up: dict[str, list[int]]


def planted(name: str = "planted", tables: tuple[str, ...] = ("flat", "sunk")) -> Planted:
    """Such a subject; its sample looks row 0 up nine times and row 1 once in every field."""
    recipe = from_dict(
        {
            "name": "planted",
            "data": {"path": "unused"},
            "features": {"sparse": list(tables)},
            "embedding": {"sets": [{"name": each, "dim": WIDTH} for each in ("a", "b")]},
            "model": {"name": "fmfm"},
            "tasks": [{"name": "click", "label": "click"}],
        }
    )
    columns = {each: Column(kind="id", num_ids=ROWS) for each in tables}
    schema = DataSchema(name="planted", columns={**columns, "click": Column(kind="label")})
    spec = spec_of(recipe, schema)
    sunk = FLAT.clone()
    sunk[:, RANK:] = 0
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)))[0]
    vectors = {(table, each): FLAT for table in tables for each in ("a", "b")}
    vectors[tables[-1], "a"] = sunk @ turn
    looked_up = {each: [0] * 9 + [1] for each in tables}

    def samples() -> Iterator[Sample]:
        rows = torch.tensor(looked_up[tables[0]])
        for part in (rows[:6], rows[6:]):
            fields = {each: FieldRows(part, torch.ones_like(part)) for each in tables}
            sets = [
                torch.stack([vectors[table, each][part] for table in tables], 1)
                for each in ("a", "b")
            ]
            linear = torch.zeros(len(part), len(tables), 1)
            inputs = Inputs(sets=sets, linear=linear, dense=torch.zeros(len(part), 0))
            yield Sample(inputs, torch.ones(len(part), 1), fields)

    subject = Subject(
        name=name,
        recipe=recipe,
        spec=spec,
        model=build_head(recipe, spec).eval(),
        vectors=lambda table, each, rows: vectors[table, each][rows.clamp(max=ROWS - 1)],
        samples=samples,
        num_rows=10,
    )
    return Planted(subject, vectors, looked_up)
