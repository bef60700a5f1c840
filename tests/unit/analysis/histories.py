"""A model with a sequence and drawn weights on the rows of `tests.helpers.histories`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

from prismrec.analysis.subject import FieldRows, Sample, Subject
from prismrec.config import Recipe
from prismrec.data.lookup import filtered_tables
from prismrec.data.source import open_data
from prismrec.data.values import one_array
from prismrec.models import spec_of
from prismrec.serving.bundle import BundleSource, write_bundle
from prismrec.serving.inference import InferenceModel, build_head
from tests.helpers.histories import make_recipe, write_histories

ONLY_CATEGORIES = (
    "features.sequences=[{name='history', gaps='ago', max_length=4, num_buckets=12, "
    "behaviours=[{column='categories', target='category'}]}]"
)
DECOUPLED = (
    "embedding.sets=[{name='wide', dim=8}, {name='att', dim=4, features=['item', 'category']}]",
    "model.sequence={kind='dare', attention='att', encoding='position', combine='concat', time_dim=2}",
)
TWO_ALIKE = "embedding.sets=[{name='a', dim=4}, {name='b', dim=4}]"


@dataclass(frozen=True)
class Drawn:
    """Such a model.

    Args:
        subject: as analyses see it.
        data: directory of its rows.
        tables: vectors by table and set.
        head: its dense part.
        rows: all rows as Arrow columns.
    """

    subject: Subject
    data: str
    tables: dict[tuple[str, str], Tensor]
    head: nn.Module
    rows: pa.Table


def drawn_model(folder: Path, *changes: str, name: str = "drawn", batch: int = 50) -> Drawn:
    """A model whose weights are all far from 0.

    Args:
        folder: for its rows, made if they are not there, and its copy.
        changes: `section.key=value` of the recipe.
        name: of the subject.
        batch: rows of a sample.
    """
    data = folder / "rows"
    if not data.exists():
        write_histories(data)
    recipe = make_recipe(data, *changes)
    spec = spec_of(recipe, open_data(str(data)).schema)
    generator = torch.Generator().manual_seed(3)
    tables = {
        (table.name, each.name): torch.randn(table.rows, each.dim, generator=generator) * 0.7
        for table in spec.tables
        for each in spec.sets_of(table)
    }
    head = build_head(recipe, spec)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return opened(folder / name, recipe, tables, head, batch)


def opened(
    copy: Path,
    recipe: Recipe,
    tables: dict[tuple[str, str], Tensor],
    head: nn.Module,
    batch: int = 4096,
    most: int = 1_000_000,
) -> Drawn:
    """A model of given weights on rows of its recipe's data.

    Args:
        copy: directory for its inference copy; its name is the subject's.
        recipe: of the model.
        tables: vectors by table and set.
        head: its dense part.
        batch: rows of a sample.
        most: rows at most, the first.
    """
    source = open_data(recipe.data.path)
    spec = spec_of(recipe, source.schema)
    held = BundleSource(
        recipe, source.schema, spec, lambda t, s: tables[t, s], head.eval(), {"step": 1}
    )
    model = InferenceModel.load(write_bundle(copy, held, "fp32"))
    labels = [task.label for task in recipe.tasks]
    wanted = list(dict.fromkeys([*model.columns, *labels]))
    rows = pa.concat_tables(filtered_tables(source, (), wanted, "rows")).slice(0, most)
    rows = rows.combine_chunks()

    def samples() -> Iterator[Sample]:
        for start in range(0, rows.num_rows, batch):
            part = rows.slice(start, batch)
            arrays = {each: one_array(part.column(each)) for each in wanted}
            with torch.no_grad():
                inputs, fields = model.inputs(model.sides(arrays, {}))
            of_tasks = torch.tensor([arrays[each].to_pylist() for each in labels])
            of_fields = {
                each: FieldRows(found.rows, found.lengths)
                for each, found in zip(model.spec.fields, fields, strict=True)
            }
            yield Sample(inputs, of_tasks.t().float(), of_fields, arrays)

    subject = Subject(copy.name, recipe, spec, model.head, model.vectors, samples, rows.num_rows)
    return Drawn(subject, recipe.data.path, tables, head, rows)
