"""One rank's part of a checkpoint: safetensors files hashed while they are written, and their entries."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import (
    Block,
    DenseEntry,
    DenseGroup,
    FileEntry,
    MapEntry,
    Part,
    TableEntry,
    TensorEntry,
    dtype_name,
    numbers_per_row,
    write_durably,
)
from prismrec.checkpoint.snapshot import Snapshot, TensorBlock

MAX_FILE_BYTES = 2 << 30
_CHUNK_BYTES = 16 << 20


@dataclass
class _File:
    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    size: int = 0


def part_file(rank: int) -> str:
    """Name of the file that says a rank has written its part, and what."""
    return f"rank-{rank:05d}.json"


def write_part(
    directory: Path,
    rank: int,
    snapshot: Snapshot,
    extra: dict[str, Any],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Part:
    """Write a rank's tensors, then its entries; the entries appear only when all is on the disk.

    Blocks larger than a file are cut by rows; a single row or dense tensor never is.

    Args:
        directory: where; exists.
        rank: whose part; all but tables is written by rank 0 only.
        snapshot: what to write.
        extra: what JSON can hold besides.
        max_file_bytes: size at which the next file is begun.

    Raises:
        OSError: the file system refuses.
    """
    files: list[_File] = []
    tables = _place_tables(snapshot, rank, files, max_file_bytes)
    dense: dict[DenseGroup, dict[str, DenseEntry]] = {
        "dense": {},
        "dense_optimizer": {},
        "ema": {},
    }
    for which, group in snapshot.dense.items() if rank == 0 else ():
        for name, tensor in group.items():
            key = f"{which}/{name}"
            dense[which][name] = DenseEntry(
                file=_place(key, tensor, rank, files, max_file_bytes),
                key=key,
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
            )
    maps = _place_maps(snapshot, rank, files, max_file_bytes)
    part = Part(
        rank=rank,
        files={each.name: write_safetensors(directory / each.name, each.tensors) for each in files},
        tables=tables,
        extra=extra if rank == 0 else {},
        dense=dense["dense"],
        dense_optimizer=dense["dense_optimizer"],
        ema=dense["ema"],
        copies={
            name: _copy(file, directory / name)
            for name, file in (snapshot.copies.items() if rank == 0 else ())
        },
        maps=maps,
    )
    write_durably(directory / part_file(rank), part.model_dump_json())
    return part


def merge_tables(parts: Sequence[Part]) -> dict[str, TableEntry]:
    """The logical tables whose blocks the parts hold, with the numbers that a row has.

    Raises:
        ValueError: two ranks disagree on the size, the type or the state of a table.
    """
    found: dict[str, list[TableEntry]] = {}
    for part in parts:
        for key, table in part.tables.items():
            found.setdefault(key, []).append(table)
    return {key: _joined(key, tables) for key, tables in found.items()}


def merge_maps(parts: Sequence[Part]) -> dict[str, MapEntry]:
    """The maps of ids whose ranges the parts hold.

    Raises:
        ValueError: two ranks disagree on the size of a map.
    """
    found: dict[str, list[MapEntry]] = {}
    for part in parts:
        for table, entry in part.maps.items():
            found.setdefault(table, []).append(entry)
    return {
        table: MapEntry(
            rows=entries[0].rows,
            buckets=entries[0].buckets,
            tensors={
                name: _concatenated(f"{table}/{name}", [each.tensors[name] for each in entries])
                for name in entries[0].tensors
            },
            newcomers=tuple(newcomers for each in entries for newcomers in each.newcomers),
        )
        for table, entries in found.items()
    }


def write_safetensors(file: Path, tensors: dict[str, Tensor]) -> FileEntry:
    """Write one safetensors file, flush it to the disk and return its size and hash.

    Args:
        file: must not exist.
        tensors: contiguous tensors in host memory by key.
    """
    # Wide elements first: each tensor then starts at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {}
    offset = 0
    for key, tensor in ordered:
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(file, "xb") as stream:
        for piece in _pieces(text, [tensor for _, tensor in ordered]):
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return FileEntry(size=8 + len(text) + offset, sha256=digest.hexdigest())


def _copy(source: Path, target: Path) -> FileEntry:
    """Copy a file, flush it to the disk and return its size and hash."""
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as stream, open(target, "xb") as out:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
            size += out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return FileEntry(size=size, sha256=digest.hexdigest())


def _pieces(header: bytes, tensors: Sequence[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]


def _place_tables(
    snapshot: Snapshot, rank: int, files: list[_File], max_file_bytes: int
) -> dict[str, TableEntry]:
    tables: dict[str, TableEntry] = {}
    placed: dict[int, list[Block]] = {}
    for block in snapshot.blocks:
        stored = placed.get(id(block.values))
        if stored is None:
            stored = placed[id(block.values)] = _place_block(block, rank, files, max_file_bytes)
        columns = {"col": block.col, "cols": block.cols}
        is_row_wise = block.values.ndim == 1
        tensor = TensorEntry(
            dtype=dtype_name(block.values.dtype),
            shape=(block.num_rows,) if is_row_wise else (block.num_rows, block.num_cols),
            blocks=tuple(each.model_copy(update=columns) for each in stored),
        )
        _add(tables, block, tensor)
    return tables


def _place_block(
    block: TensorBlock, rank: int, files: list[_File], max_file_bytes: int
) -> list[Block]:
    placed = []
    for row, values in _cut(block, max_file_bytes):
        key = f"tables/{block.key}/{block.name}@{row},{block.col}"
        file = _place(key, values, rank, files, max_file_bytes)
        placed.append(
            Block(file=file, key=key, row=row, rows=values.shape[0], col=block.col, cols=block.cols)
        )
    return placed


def _place_maps(
    snapshot: Snapshot, rank: int, files: list[_File], max_file_bytes: int
) -> dict[str, MapEntry]:
    """Maps have files of their own, so that nothing else is hashed to read them."""
    if snapshot.maps:
        files.append(_File(_file_name(rank, len(files))))
    maps = {}
    for each in snapshot.maps:
        tensors = {}
        for name, values in each.rows.items():
            column = values.unsqueeze(1)
            block = TensorBlock(each.table, name, each.num_rows, 1, each.row, 0, 1, column)
            blocks = _place_block(block, rank, files, max_file_bytes)
            tensors[name] = TensorEntry(dtype="I64", shape=(each.num_rows, 1), blocks=tuple(blocks))
        newcomers = {}
        for name, values in each.newcomers.items() if len(each.newcomers["ids"]) else ():
            key = f"newcomers/{each.table}/{name}"
            file = _place(key, values, rank, files, max_file_bytes)
            newcomers[name] = DenseEntry(file=file, key=key, dtype="I64", shape=(len(values),))
        maps[each.table] = MapEntry(
            rows=each.num_rows,
            buckets=each.buckets,
            tensors=tensors,
            newcomers=(newcomers,) if newcomers else (),
        )
    return maps


def _add(tables: dict[str, TableEntry], block: TensorBlock, tensor: TensorEntry) -> None:
    table = tables.get(block.key)
    tensors = dict(table.tensors) if table else {}
    if block.name in tensors:
        tensor = _concatenated(f"{block.key}/{block.name}", [tensors[block.name], tensor])
    tensors[block.name] = tensor
    tables[block.key] = TableEntry(rows=block.num_rows, cols=block.num_cols, tensors=tensors)


def _cut(block: TensorBlock, max_file_bytes: int) -> Iterator[tuple[int, Tensor]]:
    rows = block.values.shape[0]
    row_bytes = block.values.element_size() * (block.values.numel() // rows)
    step = max(1, max_file_bytes // row_bytes)
    for start in range(0, rows, step):
        yield block.row + start, block.values[start : start + step]


def _file_name(rank: int, number: int) -> str:
    suffix = f"-{number:03d}" if number else ""
    return f"rank-{rank:05d}{suffix}.safetensors"


def _place(key: str, tensor: Tensor, rank: int, files: list[_File], max_file_bytes: int) -> str:
    size = tensor.numel() * tensor.element_size()
    if not files or (files[-1].tensors and files[-1].size + size > max_file_bytes):
        files.append(_File(_file_name(rank, len(files))))
    file = files[-1]
    if key in file.tensors:
        raise ValueError(f"two shards of this rank hold the same block {key}")
    file.tensors[key] = tensor
    file.size += size
    return file.name


def _joined(key: str, tables: Sequence[TableEntry]) -> TableEntry:
    first = tables[0]
    for each in tables:
        same = (first.rows, first.cols, first.tensors.keys())
        if same != (each.rows, each.cols, each.tensors.keys()):
            raise ValueError(f"shards of {key} disagree on the size of the table or on its states")
    tensors = {}
    for name in first.tensors:
        joined = _concatenated(f"{key}/{name}", [each.tensors[name] for each in tables])
        tensors[name] = joined.model_copy(update={"per_row": numbers_per_row(joined)})
    return TableEntry(rows=first.rows, cols=first.cols, tensors=tensors)


def _concatenated(name: str, tensors: Sequence[TensorEntry]) -> TensorEntry:
    first = tensors[0]
    if any((each.dtype, each.shape) != (first.dtype, first.shape) for each in tensors):
        raise ValueError(f"shards of {name} disagree on its type or shape")
    blocks = tuple(block for each in tensors for block in each.blocks)
    return TensorEntry(dtype=first.dtype, shape=first.shape, blocks=blocks)
