"""Restoring a checkpoint into tables of any layout, placement and number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import (
    DTYPES,
    Conversion,
    DenseEntry,
    DenseGroup,
    Manifest,
    TensorEntry,
)
from prismrec.checkpoint.reader import CheckpointReader, assign
from prismrec.checkpoint.regions import Region, overlaps
from prismrec.checkpoint.row_state import find_conversions, row_states, sources
from prismrec.checkpoint.snapshot import TOUCHED, WEIGHT, check_shard, tensors_of
from prismrec.config import UserError
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import NEVER, LocalShard

_MAX_LISTED = 20
_CHUNK_ROWS = 1 << 21
_CONVERTIBLE = {torch.float32, torch.float16}
_WORDS: dict[DenseGroup, str] = {
    "dense": "parameter",
    "dense_optimizer": "optimizer state",
    "ema": "moving average",
}


@dataclass(frozen=True, slots=True)
class Restored:
    """What was read.

    Args:
        manifest: of the checkpoint; its `extra` holds the rest of the state.
        conversions: row-wise state on this rank that was stored for another cut of the columns.
    """

    manifest: Manifest
    conversions: tuple[Conversion, ...]


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
) -> Restored:
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

    Raises:
        UserError: `path` is not a checkpoint, is damaged, or is of another model (the differences
            are listed).
    """
    has_states = dense_optimizer is not None
    wanted: dict[DenseGroup, Mapping[str, Tensor]] = {"dense": dense}
    if dense_optimizer is not None:
        wanted["dense_optimizer"] = dense_optimizer
    if ema is not None:
        wanted["ema"] = ema
    for shard in shards:
        check_shard(shard)
    if tables is None:
        tables = {shard.key: (shard.num_rows, shard.num_cols) for shard in shards}
    with CheckpointReader(path) as reader:
        manifest = reader.manifest
        problems = _table_problems(manifest, tables) + [
            problem for shard in shards for problem in _shard_problems(manifest, shard, has_states)
        ]
        _refuse(path, problems + _dense_problems(manifest, wanted))
        blocks = _blocks(manifest, shards, has_states)
        states = row_states(shards) if has_states else []
        files = {found.file for each in blocks for found, _ in overlaps(each.entry, each.region)}
        files |= {each.file for state in states for each in sources(manifest, state)}
        files |= {manifest.group(w)[name].file for w, group in wanted.items() for name in group}
        reader.verify(files)
        for block in blocks:
            reader.fill(block.name, block.entry, block.region.row, block.region.col, block.tensor)
        for state in states:
            reader.fill_rows(state)
        if has_states:
            _restore_touched(reader, shards)
        for which, group in wanted.items():
            for name, tensor in group.items():
                assign(f"{which} {name}", tensor, reader.entry(manifest.group(which)[name]))
    return Restored(manifest, find_conversions(manifest, states))


def _restore_touched(reader: CheckpointReader, shards: Sequence[LocalShard]) -> None:
    """Packed sets share what says when a row was touched: the last time that any of them was."""
    tracked = [(each, each.touched) for each in shards if each.touched is not None]
    for _, touched in tracked:
        touched.fill_(NEVER)
    for shard, touched in tracked:
        entry = reader.manifest.tables[shard.key].tensors[TOUCHED]
        for start in range(0, len(touched) if shard.weight.numel() else 0, _CHUNK_ROWS):
            rows = torch.arange(start, min(start + _CHUNK_ROWS, len(touched)))
            found = reader.gather(entry, rows + shard.row, shard.col, shard.weight.shape[1])
            part = touched[start : start + len(rows)]
            torch.maximum(part, found.to(part.device), out=part)


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
        reader.verify_copies()
        return reader.manifest


@dataclass(frozen=True, slots=True)
class _Block:
    """A weight or an element-wise state of a shard, what is stored of it, and where it lies."""

    name: str
    entry: TensorEntry
    region: Region
    tensor: Tensor


def _blocks(manifest: Manifest, shards: Sequence[LocalShard], has_states: bool) -> list[_Block]:
    return [
        _Block(
            f"{shard.key}/{name}",
            manifest.tables[shard.key].tensors[name],
            Region(shard.row, tensor.shape[0], shard.col, tensor.shape[1]),
            tensor,
        )
        for shard in shards
        for name, tensor in tensors_of(shard).items()
        if (has_states or name == WEIGHT) and tensor.ndim == 2 and shard.weight.numel()
    ]


def _table_problems(manifest: Manifest, tables: Mapping[str, tuple[int, int]]) -> list[str]:
    mine, saved = (_sets_of(keys) for keys in (tables, manifest.tables))
    problems = _name_problems("set", mine, saved)
    shared = mine & saved
    here, there = (
        [key for key in keys if _sets_of([key]) <= shared] for keys in (tables, manifest.tables)
    )
    problems += _name_problems("table", here, there)
    for key in sorted(tables.keys() & manifest.tables.keys()):
        entry = manifest.tables[key]
        if (entry.rows, entry.cols) != tables[key]:
            whole = _shape((entry.rows, entry.cols))
            problems.append(f"table {key} is {_shape(tables[key])} here and {whole} there")
    return problems


def _sets_of(keys: Iterable[str]) -> set[str]:
    return {key.rpartition("/")[2] for key in keys}


def _shard_problems(manifest: Manifest, shard: LocalShard, has_states: bool) -> list[str]:
    table = manifest.tables.get(shard.key)
    whole = (shard.num_rows, shard.num_cols)
    if table is None or (table.rows, table.cols) != whole or not shard.weight.numel():
        return []
    local = tensors_of(shard) if has_states else {WEIGHT: shard.weight}
    saved = dict(table.tensors) if has_states else {WEIGHT: table.tensors[WEIGHT]}
    is_tracked = saved.pop(TOUCHED, None) is not None
    problems = _name_problems(f"optimizer state of {shard.key}", local, saved)
    if has_states and shard.touched is not None and not is_tracked:
        problems.append(
            f"when rows of {shard.key} were touched (embedding.track_touched) is unknown"
        )
    for name in sorted(local.keys() & saved.keys()):
        shape = whole[: local[name].ndim]
        problems += _tensor_problems(f"{shard.key}/{name}", shape, local[name], saved[name])
    return problems


def _dense_problems(
    manifest: Manifest, wanted: Mapping[DenseGroup, Mapping[str, Tensor]]
) -> list[str]:
    problems = []
    for which, group in wanted.items():
        saved, word = manifest.group(which), _WORDS[which]
        problems += _name_problems(word, group, saved)
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
