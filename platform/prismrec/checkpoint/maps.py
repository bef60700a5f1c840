"""Reading maps of ids: for the ranges of rows that a rank has, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import MapEntry
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config import UserError, nearest
from prismrec.embeddings.managed.state import ROW_TENSORS, MapShard


def restore_maps(path: str | Path, maps: Sequence[MapShard]) -> None:
    """Fill this rank's maps in place; every rank calls it, none communicates.

    Ids keep their rows. The new ids that no rank has given a row yet come whole: a map takes those
    of its buckets.

    Args:
        path: a checkpoint, made by any number of ranks.
        maps: of the rows on this rank, one for each table.

    Raises:
        UserError: `path` is not a checkpoint, is damaged, or has not the same tables of managed ids
            in as many buckets.
    """
    with CheckpointReader(path) as reader:
        saved = reader.manifest.maps
        for each in maps:
            _check(path, each, saved.get(each.table))
        for each in maps:
            entry = saved[each.table]
            for name, values in each.rows.items():
                column = values.unsqueeze(1)
                reader.fill(f"{each.table}/{name}", entry.tensors[name], each.row, 0, column)
            for name in ROW_TENSORS:
                parts = [reader.entry(part[name]) for part in entry.newcomers]
                each.newcomers[name] = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])


def row_owners(reader: CheckpointReader, table: str) -> Tensor:
    """(rows,) the id that has each row of a table of managed ids, `NULL_ID` where none has.

    Args:
        reader: an open checkpoint.
        table: name of the table.

    Raises:
        UserError: the checkpoint has no map of such a table, or is damaged.
    """
    entry = reader.manifest.maps.get(table)
    if entry is None:
        known = tuple(reader.manifest.maps)
        raise UserError(f"{reader.path}: no map of ids of table '{table}'; {nearest(table, known)}")
    owners = torch.empty(entry.rows, dtype=torch.int64)
    reader.fill(f"{table}/ids", entry.tensors["ids"], 0, 0, owners.unsqueeze(1))
    return owners


def _check(path: str | Path, here: MapShard, saved: MapEntry | None) -> None:
    if saved is None:
        raise UserError(
            f"checkpoint of another model: {path}: it has no map of the ids of table "
            f"'{here.table}'; use the recipe it was trained with, or start without it"
        )
    if (saved.rows, saved.buckets) != (here.num_rows, here.buckets):
        raise UserError(
            f"checkpoint of another model: {path}: table '{here.table}' has {here.num_rows} rows in "
            f"{here.buckets} buckets here, and {saved.rows} in {saved.buckets} there; use the rows "
            "and data.lanes that it was trained with, or start without it"
        )
