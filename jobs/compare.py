"""Two models on the same rows: the difference of their AUC, with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.data.source import open_data
from prismrec.jobs.evaluate import (
    Progress,
    check_not_empty,
    labelled,
    opened_model,
    split_tables,
    table_logits,
)
from prismrec.train.metrics.bootstrap import Resampling, bootstrap_auc_difference
from prismrec.train.metrics.functions import auc

Floats = NDArray[np.floating[Any]]


def compare_models(
    model: str, rival: str, data: str, split: str, uri: str, progress: Progress
) -> dict[str, Any]:
    """AUC of a model less that of a rival, for the tasks both have, on one split.

    Args:
        model: see `opened_model`.
        rival: the model to compare with; both must read their columns from the same data.
        data: a data set with the columns and labels.
        split: of the first model's recipe.
        uri: tracking URI of the registry.
        progress: told the rows done so far and the rows of the data set.

    Returns:
        By `task`: `auc`, `rival_auc`, `difference`, and `low` and `high`, the ends of the 95 %
        bootstrap interval of the difference.

    Raises:
        UserError: the models share no task; or as `evaluate_model`.
    """
    with opened_model(model, uri) as first, opened_model(rival, uri) as second:
        recipe, source = first.inference.recipe, open_data(data)
        others = second.inference.recipe.task_names
        tasks = [task for task in recipe.tasks if task.name in others]
        if not tasks:
            raise UserError(
                f"--against: {rival} has no task of {model} ({', '.join(recipe.task_names)})"
            )
        mine = [recipe.task_names.index(task.name) for task in tasks]
        rivals = [others.index(task.name) for task in tasks]
        features = [*first.inference.columns, *second.inference.columns]
        parts: list[tuple[Floats, ...]] = []
        done = 0
        for table in split_tables(recipe, source, split, features):
            if table.num_rows:
                ours = table_logits(first.inference, table).numpy()
                theirs = table_logits(second.inference, table).numpy()
                labels, valid = labelled(table, tasks, data)
                parts.append((ours[:, mine], theirs[:, rivals], labels.numpy(), valid.numpy()))
            done += table.num_rows
            progress(done, source.num_rows)
    check_not_empty(done, data, split)
    a, b, y, kept = (np.concatenate(each) for each in zip(*parts, strict=True))
    columns = [(part[:, t][kept[:, t] > 0]) for t in range(len(tasks)) for part in (a, b, y)]
    return {
        task.name: _difference(*columns[3 * t : 3 * t + 3], seed=recipe.seed)
        for t, task in enumerate(tasks)
    }


def _difference(ours: Floats, theirs: Floats, labels: Floats, *, seed: int) -> dict[str, float]:
    low, high = bootstrap_auc_difference(theirs, ours, labels, resampling=Resampling(seed=seed))
    first, second = auc(ours, labels), auc(theirs, labels)
    return {
        "auc": first,
        "rival_auc": second,
        "difference": first - second,
        "low": low,
        "high": high,
    }
