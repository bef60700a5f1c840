"""Two models on the same rows: the difference of their AUC, with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from prismrec.config import UserError
from prismrec.data.source import open_data
from prismrec.jobs.evaluate import Progress, labelled, opened_model, split_tables
from prismrec.train.metrics.bootstrap import Resampling, bootstrap_auc_difference
from prismrec.train.metrics.functions import auc


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
        UserError: the models share no task.
    """
    with opened_model(model, uri) as first, opened_model(rival, uri) as second:
        recipe, source = first.inference.recipe, open_data(data)
        others = second.inference.recipe.task_names
        tasks = [task for task in recipe.tasks if task.name in others]
        if not tasks:
            raise UserError(
                f"--against: {rival} has no task of {model} ({', '.join(recipe.task_names)})"
            )
        features = [*first.inference.columns, *second.inference.columns]
        parts: list[tuple[np.ndarray, ...]] = []
        done = 0
        for table in split_tables(recipe, source, split, features):
            if table.num_rows:
                ours = _logits(first.inference, table)[:, [recipe.tasks.index(t) for t in tasks]]
                theirs = _logits(second.inference, table)[:, [others.index(t.name) for t in tasks]]
                labels, valid = labelled(table, tasks)
                parts.append((ours, theirs, labels.numpy(), valid.numpy()))
            done += table.num_rows
            progress(done, source.num_rows)
    a, b, labels, valid = (np.concatenate(each) for each in zip(*parts, strict=True))
    report = {}
    for t, task in enumerate(tasks):
        kept = valid[:, t] > 0
        low, high = bootstrap_auc_difference(
            b[kept, t], a[kept, t], labels[kept, t], resampling=Resampling(seed=recipe.seed)
        )
        ours, theirs = auc(a[kept, t], labels[kept, t]), auc(b[kept, t], labels[kept, t])
        report[task.name] = {
            "auc": ours,
            "rival_auc": theirs,
            "difference": ours - theirs,
            "low": low,
            "high": high,
        }
    return report


def _logits(inference: Any, table: Any) -> np.ndarray:
    columns = {name: table.column(name).combine_chunks() for name in inference.columns}
    return np.asarray(inference.predict_logits(columns))
