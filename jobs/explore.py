"""Exploration as jobs: fitting to a model's training rows, and scoring rows to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError, nearest
from prismrec.data.schema import Kind
from prismrec.data.source import open_data
from prismrec.data.values import NO_KEY, ints, one_array
from prismrec.data.write import staged
from prismrec.jobs.evaluate import check_not_empty, column_tables, opened_model
from prismrec.serving.exploration import RULES, Explorer, Rule, Scores

Progress = Callable[[int, int], None]

_AT_ONCE = 16_384
"""Rows that the model sees at once."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How rows are scored.

    Args:
        rule: see `Explorer.score`.
        kappa: of `ucb`.
        seed: of `thompson`.
        group: column whose values are the requests; the recipe's group if None.
    """

    rule: Rule = "thompson"
    kappa: float = 1.0
    seed: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"--rule: unknown rule '{self.rule}'; {nearest(self.rule, RULES)}")


def fit_explorer(
    model: str, data: str, out: Path, about: tuple[str, str | None, float, str], progress: Progress
) -> dict[str, Any]:
    """Fit the last layer's precision to the rows that a model was trained on.

    Args:
        model: as for `opened_model`.
        data: a data set with the model's columns; labels are not needed.
        out: directory to make, which appears when it is complete.
        about: split of the model's recipe (or `all`), task (its first if None), prior precision, and
            tracking URI.
        progress: told the rows done and the rows of the data set.

    Raises:
        UserError: there is no such model, split, task or column, or `out` is taken.
    """
    split, task, prior, uri = about
    with staged(out) as stage, opened_model(model, uri) as opened:
        inference, source = opened.inference, open_data(data)
        explorer = Explorer.of(inference, task or inference.tasks[0], prior)
        for table in column_tables(inference.recipe, source, split, _any(inference.columns)):
            for part in _parts(table):
                columns = {name: one_array(part.column(name)) for name in inference.columns}
                explorer.update(inference, columns)
            progress(explorer.rows, source.num_rows)
        check_not_empty(explorer.rows, data, split)
        explorer.save(stage)
        width = len(explorer.head.precision)
        return {"model": opened.name, "task": explorer.task, "rows": explorer.rows, "width": width}


def score_rows(
    model: str, explorer: Path, data: str, out: Path, how: tuple[Choice, str]
) -> dict[str, Any]:
    """Write `probability`, `deviation` and `score` of every row of a data set, a file for each row group.

    The group and every `*_id` column go with them. Memory is bounded by a row group.

    Args:
        model: as for `opened_model`.
        explorer: what `fit_explorer` wrote.
        data: a data set with the model's columns; labels are not needed.
        out: directory to make, which appears when it is complete.
        how: the rule, and the tracking URI.

    Raises:
        UserError: there is no such model, explorer or column, or `out` is taken.
    """
    choice, uri = how
    fitted = Explorer.load(explorer)
    with staged(out) as stage, opened_model(model, uri) as opened:
        inference, source = opened.inference, open_data(data)
        group = choice.group or inference.recipe.features.group
        names = source.arrow(0).names
        if group is not None and group not in names:
            raise UserError(f"--group: no column '{group}' in {data}; {nearest(group, names)}")
        carried = [name for name in names if name == group or name.endswith("_id")]
        wanted = dict.fromkeys([*inference.columns, *carried])
        done = 0
        tables = column_tables(inference.recipe, source, "all", _any(wanted))
        for number, table in enumerate(tables):
            scored = []
            for part in _parts(table):
                request = np.arange(done, done + part.num_rows)
                if group is not None:
                    request = ints(one_array(part.column(group)), NO_KEY).copy()
                columns = {name: one_array(part.column(name)) for name in inference.columns}
                scores = fitted.score(
                    inference, columns, choice.rule, request, (choice.kappa, choice.seed)
                )
                scored.append(_with(part.select(carried), scores))
                done += part.num_rows
            if scored:
                pq.write_table(pa.concat_tables(scored), stage / f"part-{number:05d}.parquet")
    return {"model": opened.name, "rule": choice.rule, "rows": done, "out": str(out)}


def _any(names: Iterable[str]) -> dict[str, tuple[Kind, ...]]:
    """Columns of any kind."""
    return dict.fromkeys(names, ())


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, _AT_ONCE) for start in range(0, table.num_rows, _AT_ONCE))


def _with(table: pa.Table, scores: Scores) -> pa.Table:
    for name in ("probability", "deviation", "score"):
        table = table.append_column(name, pa.array(getattr(scores, name).numpy()))
    return table
