"""Raw held-out rows with the trainer's own logits: what an exported model is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prismrec.config import Recipe
from prismrec.data.batch import Batch
from prismrec.data.lookup import raw_rows
from prismrec.data.reader import Reader
from prismrec.train.evaluate import evaluation_mode, full_precision, predict_batch
from prismrec.train.feed import Splits
from prismrec.train.propensity import Corrections
from prismrec.train.sharding import ShardedModel

MAX_ROWS = 20_000
"""Rows of rank 0 after which no further batch is kept."""
PARTS = ("logit", "label", "valid")
"""Columns `__PART_TASK` beside the raw ones."""


def write_held_out(recipe: Recipe, splits: Splits, sharded: ShardedModel, path: Path) -> None:
    """Predict held-out batches with autocast off; rank 0 keeps its rows of them.

    Collective: every rank calls it.
    """
    reader = splits.held_out()
    leaf = sharded.leaf
    corrections, tables = Corrections(recipe), []
    before = (0,) * reader.lanes.num_lanes
    with evaluation_mode(sharded), full_precision(leaf):
        for step, (batch, state) in enumerate(reader.epoch()):
            splits.on_batch()
            logits = predict_batch(sharded, batch.to(sharded.ranks.device))
            if sharded.ranks.is_first:
                tables.append(
                    _table(
                        recipe,
                        splits,
                        reader,
                        (before, state.offsets),
                        batch,
                        corrections(logits, batch),
                    )
                )
            before = state.offsets
            if (step + 1) * reader.batch_rows >= MAX_ROWS:
                break
    if sharded.ranks.is_first:
        pq.write_table(pa.concat_tables(tables), path)


def _table(
    recipe: Recipe,
    splits: Splits,
    reader: Reader,
    span: tuple[tuple[int, ...], tuple[int, ...]],
    batch: Batch,
    logits: Tensor,
) -> pa.Table:
    """Rank 0's rows of one batch, without padding and rows that cannot be decoded."""
    places, kept = [], []
    width = reader.lanes.step_rows
    for column, lane in enumerate(splits.owned(reader)):
        start, stop = span[0][lane], span[1][lane]
        places.append(reader.rows_at(0, lane, start, stop))
        kept.append(np.arange(stop - start) + column * width)
    files, groups, rows = (np.concatenate(part) for part in zip(*places, strict=True))
    index = torch.from_numpy(np.concatenate(kept))
    is_read = (batch.weights[index] > 0).any(1)
    index, known = index[is_read], is_read.numpy()
    table = raw_rows(splits.source, (files[known], groups[known], rows[known]), recipe.raw_columns)
    values: dict[str, Any] = {"logit": logits, "label": batch.labels, "valid": batch.valid}
    for part in PARTS:
        for t, task in enumerate(recipe.task_names):
            numbers = values[part][index, t].numpy()
            table = table.append_column(f"__{part}_{task}", pa.array(numbers))
    return table
