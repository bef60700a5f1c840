"""Exact metrics and predictions of a registered model, a run, or a checkpoint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from prismrec.checkpoint.directory import find_checkpoint
from prismrec.config import Recipe, UserError
from prismrec.config.data import Task
from prismrec.data.domains import domains_of
from prismrec.data.lookup import filtered_tables
from prismrec.data.schema import Kind
from prismrec.data.source import DataSource, open_data
from prismrec.data.values import NO_KEY, ints, label_and_valid, one_array
from prismrec.jobs.publish import bundle_of_checkpoint
from prismrec.serving.inference import InferenceModel
from prismrec.serving.predict import predict_parquet
from prismrec.tracking.registry import Registry
from prismrec.train.metrics.evaluation import Evaluation

Progress = Callable[[int, int], None]
SPLITS = ("train", "valid", "test", "all")


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model ready to predict.

    Args:
        inference: the model.
        name: `models:/NAME/VERSION`, or the directory it came from.
        version: version in the registry, or None.
        run: MLflow run that trained it, or None.
    """

    inference: InferenceModel
    name: str
    version: int | None
    run: str | None


@contextmanager
def opened_model(model: str, uri: str) -> Iterator[OpenedModel]:
    """A model by registry name, run id, or directory of a run, checkpoint or inference copy.

    Raises:
        UserError: there is no such model.
    """
    with Registry(uri).resolve(model) as found, tempfile.TemporaryDirectory() as scratch:
        path, info = found.path, found.version
        if not found.is_bundle:
            checkpoint = find_checkpoint(path)
            path = bundle_of_checkpoint(checkpoint, Path(scratch) / "model")
        inference = InferenceModel.load(path)
        name = info.uri if info else str(found.path)
        yield OpenedModel(
            inference, name, info.version if info else None, info.run if info else None
        )


def evaluate_model(
    model: str, data: str, split: str, uri: str, progress: Progress
) -> dict[str, Any]:
    """Exact metrics of a model over one split of a data set, as the trainer computes them.

    Slices are those of `features.domain` only: how often training saw an id is known to the run
    alone, so there are no slices by frequency.

    Args:
        model: see `opened_model`.
        data: a data set with the model's columns and labels.
        split: `train`, `valid` or `test` of the model's recipe, or `all` rows.
        uri: tracking URI of the registry.
        progress: told the rows done so far and the rows of the data set.

    Returns:
        The document of `evaluate --json`: `model`, `version`, `run`, `test` (metrics by
        `task/metric`), `slices`, `rows` and `examples_per_second`.

    Raises:
        UserError: the model, the split or a column is missing, no row is in the split, or a label
            is not 0, 1 or missing.
    """
    with opened_model(model, uri) as opened:
        inference = opened.inference
        recipe, source = inference.recipe, open_data(data)
        start = time.perf_counter()
        metrics, done = measure(inference, recipe, source, split, progress)
        check_not_empty(done, data, split)
        whole = {key: value for key, value in metrics.items() if key.count("/") == 1}
        return {
            "model": opened.name,
            "version": opened.version,
            "run": opened.run,
            "test": whole,
            "slices": {key: value for key, value in metrics.items() if key not in whole},
            "rows": done,
            "examples_per_second": done / (time.perf_counter() - start),
        }


def measure(
    inference: InferenceModel, recipe: Recipe, source: DataSource, split: str, progress: Progress
) -> tuple[dict[str, float], int]:
    """Metrics of an inference copy over a split, and how many rows that has.

    Args:
        inference: the model.
        recipe: says which rows the split has; tasks, group and domain are the model's.
        source: the data set.
        split: `train`, `valid`, `test` or `all`.
        progress: told the rows done so far and the rows of the data set.

    Raises:
        UserError: the split or a column is missing, or a label is not 0, 1 or missing.
    """
    own = inference.recipe
    evaluation = Evaluation(
        own.task_names,
        ("domain",) if own.features.domain else (),
        grouped=own.features.group is not None,
    )
    done = 0
    for table in split_tables(recipe, source, split, inference.columns):
        if table.num_rows:
            _update(evaluation, inference, table, source)
        done += table.num_rows
        progress(done, source.num_rows)
    return (evaluation.compute() if done else {}), done


def predict_data(model: str, data: str, out: Path, uri: str, progress: Progress) -> dict[str, Any]:
    """Write the probabilities of every row, with keys and row order kept.

    Returns:
        The document of `predict --json`: `model`, `rows`, `out`, and the ids that were unknown to
        the model by feature.

    Raises:
        UserError: the model or a column is missing, or `out` is not empty.
    """
    with opened_model(model, uri) as opened:
        rows = predict_parquet(opened.inference, data, out, progress=progress)
        unknown = dict(opened.inference.unknown_ids)
    return {"model": opened.name, "rows": rows, "out": str(out), "unknown_ids": unknown}


def split_tables(
    recipe: Recipe, source: DataSource, split: str, features: Iterable[str]
) -> Iterator[pa.Table]:
    """The rows of a split with features, labels, group and domain, a row group at a time.

    Raises:
        UserError: the recipe has no such split, or a column is missing or of another kind.
    """
    tasks, extra = recipe.tasks, [recipe.features.group, recipe.features.domain]
    extra += [column for task in tasks for column in (task.label, task.valid)]
    columns = list(dict.fromkeys([*features, *(name for name in extra if name)]))
    kinds: dict[str | None, tuple[Kind, ...]] = {task.valid: ("label", "number") for task in tasks}
    kinds |= {task.label: ("label",) for task in tasks}
    return column_tables(recipe, source, split, {name: kinds.get(name, ()) for name in columns})


def column_tables(
    recipe: Recipe, source: DataSource, split: str, columns: Mapping[str, Sequence[Kind]]
) -> Iterator[pa.Table]:
    """The rows of a split with some columns, a row group at a time; there may be no labels.

    Args:
        recipe: says which rows the split has.
        source: the data set.
        split: `train`, `valid`, `test` or `all`.
        columns: kinds that each may have, any if there are none.

    Raises:
        UserError: the recipe has no such split, or a column is missing or of another kind.
    """
    if split not in SPLITS:
        raise UserError(f"--split: must be one of {', '.join(SPLITS)}, got '{split}'")
    conditions = () if split == "all" else getattr(recipe.data.splits, split)
    if conditions is None:
        raise UserError(f"--split: the model's recipe has no split '{split}'; use --split all")
    for name, kinds in columns.items():
        source.schema.column(name, tuple(kinds) or get_args(Kind), "--data")
    return filtered_tables(source, conditions, list(columns), f"data.splits.{split}")


def check_not_empty(rows: int, data: str, split: str) -> None:
    """Refuse a split without rows.

    Raises:
        UserError: there are none.
    """
    if not rows:
        raise UserError(
            f"--split {split}: no row of {data} meets its conditions; use --split all or other data"
        )


def table_logits(inference: InferenceModel, table: pa.Table) -> Tensor:
    """Logits (B, T) of the rows of a table."""
    columns = {name: one_array(table.column(name)) for name in inference.columns}
    return inference.predict_logits(columns)


def labelled(table: pa.Table, tasks: Sequence[Task], where: str) -> tuple[Tensor, Tensor]:
    """Labels and validity of the tasks, (B, T) each, by the reader's own rules.

    Raises:
        UserError: a label is not 0, 1 or missing; it names `where`.
    """
    arrays = {
        name: one_array(table.column(name))
        for task in tasks
        for name in (task.label, task.valid)
        if name is not None
    }
    pairs = [
        label_and_valid(
            (task.label, arrays[task.label]),
            None if task.valid is None else (task.valid, arrays[task.valid]),
            where,
        )
        for task in tasks
    ]
    labels, valid = (torch.from_numpy(np.stack(part, 1)) for part in zip(*pairs, strict=True))
    return labels, valid


def _update(
    evaluation: Evaluation, inference: InferenceModel, table: pa.Table, source: DataSource
) -> None:
    recipe = inference.recipe
    labels, valid = labelled(table, recipe.tasks, source.path)
    slices = {}
    if recipe.features.domain:
        domains, ids = domains_of(recipe, source.schema), _keys(table, recipe.features.domain)
        known = domains.known(ids.numpy(), "row {} of a row group".format) if domains else ids
        slices["domain"] = torch.as_tensor(known)
    evaluation.update(
        table_logits(inference, table),
        labels,
        valid,
        torch.ones_like(valid),
        _keys(table, recipe.features.group),
        slices,
    )


def _keys(table: pa.Table, name: str | None) -> Tensor:
    """Group or domain of the rows, (B,)."""
    if name is None:
        return torch.zeros(table.num_rows, dtype=torch.int64)
    return torch.from_numpy(ints(one_array(table.column(name)), NO_KEY).copy())
