"""Exploration as jobs: fitting to a model's training rows, and scoring rows to choose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError, nearest
from prismrec.data.source import open_data
from prismrec.data.values import NO_KEY, ints, one_array
from prismrec.data.write import staged
from prismrec.jobs.evaluate import check_not_empty, opened_model, split_tables
from prismrec.serving.exploration import RULES, Explorer, Rule

Progress = Callable[[int, int], None]


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
        data: a data set with the model's columns.
        out: directory to make.
        about: split of the model's recipe (or `all`), task (its first if None), prior precision, and
            tracking URI.
        progress: told the rows done and the rows of the data set.

    Raises:
        UserError: there is no such model, split, task or column, or `out` is taken.
    """
    split, task, prior, uri = about
    with opened_model(model, uri) as opened:
        inference, source = opened.inference, open_data(data)
        explorer = Explorer.of(inference, task or inference.tasks[0], prior)
        for table in split_tables(inference.recipe, source, split, inference.columns):
            if table.num_rows:
                columns = {name: one_array(table.column(name)) for name in inference.columns}
                explorer.update(inference, columns)
            progress(explorer.rows, source.num_rows)
        check_not_empty(explorer.rows, data, split)
        explorer.save(out)
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
        data: a data set with the model's columns.
        out: directory to make.
        how: the rule, and the tracking URI.

    Raises:
        UserError: there is no such model, explorer or column, or `out` is taken.
    """
    choice, uri = how
    fitted = Explorer.load(explorer)
    with opened_model(model, uri) as opened, staged(out) as stage:
        inference, source = opened.inference, open_data(data)
        group = choice.group or inference.recipe.features.group
        names = source.arrow(0).names
        if group is not None and group not in names:
            raise UserError(f"--group: no column '{group}' in {data}; {nearest(group, names)}")
        carried = [name for name in names if name == group or name.endswith("_id")]
        wanted = dict.fromkeys([*inference.columns, *carried])
        done = 0
        tables = split_tables(inference.recipe, source, "all", wanted)
        for number, table in enumerate(tables):
            request = np.arange(done, done + table.num_rows)
            if group is not None:
                request = ints(one_array(table.column(group)), NO_KEY).copy()
            columns = {name: one_array(table.column(name)) for name in inference.columns}
            scores = fitted.score(
                inference, columns, choice.rule, request, (choice.kappa, choice.seed)
            )
            found = {name: getattr(scores, name) for name in ("probability", "deviation", "score")}
            written = table.select(carried)
            for name, values in found.items():
                written = written.append_column(name, pa.array(values.numpy()))
            pq.write_table(written, stage / f"part-{number:05d}.parquet")
            done += table.num_rows
    return {"model": opened.name, "rule": choice.rule, "rows": done, "out": str(out)}
