"""Restoring a checkpoint into tables of any layout, placement and number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import DTYPES, DenseEntry, DenseGroup, Manifest, TensorEntry
from prismrec.checkpoint.reader import CheckpointReader, assign, overlaps
from prismrec.checkpoint.snapshot import WEIGHT, check_shard, tensors_of
from prismrec.config import UserError
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

_MAX_LISTED = 20
_CONVERTIBLE = {torch.float32, torch.float16}
_WORDS: dict[DenseGroup, str] = {
    "dense": "parameter",
    "dense_optimizer": "optimizer state",
    "ema": "moving average",
}


def table_shapes(spec: EmbeddingSpec) -> dict[str, tuple[int, int]]:
    """(rows, cols) of every logical table by `table/set`: what a checkpoint of it must hold."""
    return {
        f"{table.name}/{each.name}": (table.rows, each.dim)
        for table in spec.tables
        for each in spec.sets_of(table)
    }


def restore(
    path: str | Path,
    shards: Sequence[LocalShard],
    dense: Mapping[str, Tensor],
    dense_optimizer: Mapping[str, Tensor] | None,
    ema: Mapping[str, Tensor] | None,
    tables: Mapping[str, tuple[int, int]] | None = None,
) -> Manifest:
    """Fill this rank's tables and dense tensors in place; every rank calls it, none communicates.

    Only slices that lie on this rank are read, from files whose SHA-256 is right. Nothing is
    changed before everything is known to fit, except that a value too large for fp16 is only found
    when it is copied.

    Args:
        path: a checkpoint, made by any number of ranks under any plan and layout.
        shards: blocks of the tables on this rank, replicas too.
        dense: parameters and buffers by name.
        dense_optimizer: their optimizer state, already allocated, by `parameter/state`. None
            leaves all optimizer state alone, also that of the tables.
        ema: moving averages by name, empty if the run keeps none; None leaves them alone.
        tables: (rows, cols) of all tables of the model, see `table_shapes`. None if `shards` has
            a part of each, as on a single rank.

    Returns:
        The manifest, whose `extra` holds the rest of the state.

    Raises:
        UserError: `path` is not a checkpoint, is damaged, or is of another model (the differences
            are listed); or sets that share their row-wise state had different ones.
    """
    has_states = dense_optimizer is not None
    wanted: dict[DenseGroup, Mapping[str, Tensor]] = {"dense": dense}
    if dense_optimizer is not None:
        wanted["dense_optimizer"] = dense_optimizer
    if ema is not None:
        wanted["ema"] = ema
    for shard in shards:
        check_shard(shard)
    with CheckpointReader(path) as reader:
        manifest = reader.manifest
        if tables is None:
            tables = {shard.key: (shard.num_rows, shard.num_cols) for shard in shards}
        problems = _table_problems(manifest, tables)
        for shard in shards:
            problems += _shard_problems(manifest, shard, has_states)
        for which, group in wanted.items():
            problems += _dense_problems(manifest, which, group)
        _refuse(path, problems)
        local = _local_tensors(manifest, shards, has_states)
        files = {b.file for _, e, s, t in local for b, _ in overlaps(e, s.row, _col(s, t), t)}
        files |= {manifest.group(w)[name].file for w, group in wanted.items() for name in group}
        reader.verify(files)
        _check_coupled(reader, local)
        for name, entry, shard, tensor in local:
            reader.fill(name, entry, shard.row, _col(shard, tensor), tensor)
        for which, group in wanted.items():
            for name, tensor in group.items():
                assign(f"{which} {name}", tensor, reader.entry(manifest.group(which)[name]))
    return manifest


def read_table(path: str | Path, table: str, set_name: str) -> Tensor:
    """The whole weight (rows, cols) of a table in one set. For several, use `CheckpointReader`.

    Raises:
        UserError: `path` is not a checkpoint, is damaged, or has no such table.
    """
    with CheckpointReader(path) as reader:
        return reader.table(table, set_name)


def read_dense(path: str | Path, which: DenseGroup = "dense") -> dict[str, Tensor]:
    """The tensors of one dense group by name.

    Raises:
        UserError: `path` is not a checkpoint or is damaged.
    """
    with CheckpointReader(path) as reader:
        return reader.dense(which)


def verify(path: str | Path) -> Manifest:
    """The manifest of a checkpoint, after every file's SHA-256 was found right.

    Raises:
        UserError: `path` is not a checkpoint, or a file is missing or damaged (the first is named).
    """
    with CheckpointReader(path) as reader:
        reader.verify(reader.manifest.files)
        return reader.manifest


_Local = tuple[str, TensorEntry, LocalShard, Tensor]


def _local_tensors(
    manifest: Manifest, shards: Sequence[LocalShard], has_states: bool
) -> list[_Local]:
    return [
        (f"{shard.key}/{name}", manifest.tables[shard.key].tensors[name], shard, tensor)
        for shard in shards
        for name, tensor in tensors_of(shard).items()
        if (has_states or name == WEIGHT) and shard.weight.numel()
    ]


def _col(shard: LocalShard, tensor: Tensor) -> int:
    return shard.col if tensor.ndim == 2 else 0


def _check_coupled(reader: CheckpointReader, local: Sequence[_Local]) -> None:
    """Sets packed into one row share its row-wise state: what they had must have been the same."""
    sharing = Counter(tensor.data_ptr() for *_, tensor in local if tensor.ndim == 1)
    first: dict[int, tuple[str, Tensor]] = {}
    for name, entry, shard, tensor in local:
        if tensor.ndim != 1 or sharing[tensor.data_ptr()] == 1:
            continue
        stored = torch.empty(tensor.shape, dtype=DTYPES[entry.dtype])
        reader.fill(name, entry, shard.row, 0, stored)
        other, values = first.setdefault(tensor.data_ptr(), (name, stored))
        if not torch.equal(values, stored):
            raise UserError(
                f"checkpoint {reader.path}: {other} and {name} differ, but the packed layout has "
                f"one row-wise state for both; restore with embedding.layout = 'separate'"
            )


def _table_problems(manifest: Manifest, tables: Mapping[str, tuple[int, int]]) -> list[str]:
    problems = _name_problems("table", tables, manifest.tables)
    for key in sorted(tables.keys() & manifest.tables.keys()):
        saved = (manifest.tables[key].rows, manifest.tables[key].cols)
        if saved != tables[key]:
            problems.append(f"table {key} is {_shape(tables[key])} here and {_shape(saved)} there")
    return problems


def _shard_problems(manifest: Manifest, shard: LocalShard, has_states: bool) -> list[str]:
    table = manifest.tables.get(shard.key)
    whole = (shard.num_rows, shard.num_cols)
    if table is None or (table.rows, table.cols) != whole or not shard.weight.numel():
        return []
    local = tensors_of(shard) if has_states else {WEIGHT: shard.weight}
    saved = table.tensors if has_states else {WEIGHT: table.tensors[WEIGHT]}
    problems = _name_problems(f"optimizer state of {shard.key}", local, saved)
    for name in sorted(local.keys() & saved.keys()):
        shape = whole[: local[name].ndim]
        problems += _tensor_problems(f"{shard.key}/{name}", shape, local[name], saved[name])
    return problems


def _dense_problems(
    manifest: Manifest, which: DenseGroup, group: Mapping[str, Tensor]
) -> list[str]:
    saved, word = manifest.group(which), _WORDS[which]
    problems = _name_problems(word, group, saved)
    for name in sorted(group.keys() & saved.keys()):
        tensor = group[name]
        problems += _tensor_problems(f"{word} {name}", tuple(tensor.shape), tensor, saved[name])
    return problems


def _tensor_problems(
    name: str, shape: tuple[int, ...], tensor: Tensor, saved: TensorEntry | DenseEntry
) -> list[str]:
    if shape != saved.shape:
        return [f"{name} is {_shape(shape)} here and {_shape(saved.shape)} there"]
    dtype = DTYPES[saved.dtype]
    if dtype != tensor.dtype and not {dtype, tensor.dtype} <= _CONVERTIBLE:
        return [f"{name} is {tensor.dtype} here and {dtype} there"]
    return []


def _name_problems(word: str, here: Iterable[str], there: Iterable[str]) -> list[str]:
    mine, saved = set(here), set(there)
    return [f"{word} {name} is not in the checkpoint" for name in sorted(mine - saved)] + [
        f"{word} {name} is only in the checkpoint" for name in sorted(saved - mine)
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _refuse(path: str | Path, problems: Sequence[str]) -> None:
    if not problems:
        return
    unique = list(dict.fromkeys(problems))
    listed = unique[:_MAX_LISTED]
    if len(unique) > len(listed):
        listed.append(f"and {len(unique) - len(listed)} more")
    raise UserError(
        f"checkpoint of another model: {path}: {'; '.join(listed)}; use the recipe it was trained "
        f"with, or start without it"
    )
