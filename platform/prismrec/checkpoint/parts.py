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
    Part,
    TableEntry,
    TensorEntry,
    dtype_name,
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
        rank: whose part; dense tensors and `extra` are written by rank 0 only.
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
    part = Part(
        rank=rank,
        files={each.name: write_safetensors(directory / each.name, each.tensors) for each in files},
        tables=tables,
        extra=extra if rank == 0 else {},
        dense=dense["dense"],
        dense_optimizer=dense["dense_optimizer"],
        ema=dense["ema"],
    )
    write_durably(directory / part_file(rank), part.model_dump_json())
    return part


def merge_tables(parts: Sequence[Part]) -> dict[str, TableEntry]:
    """The logical tables whose blocks the parts hold.

    Raises:
        ValueError: two ranks disagree on the size, the type or the state of a table.
    """
    merged: dict[str, TableEntry] = {}
    for part in parts:
        for key, table in part.tables.items():
            merged[key] = _joined(key, merged[key], table) if key in merged else table
    return merged


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
    for block in snapshot.blocks:
        entries = []
        for row, values in _cut(block, max_file_bytes):
            key = f"tables/{block.key}/{block.name}@{row},{block.col}"
            entries.append(
                Block(
                    file=_place(key, values, rank, files, max_file_bytes),
                    key=key,
                    row=row,
                    rows=values.shape[0],
                    col=block.col,
                    cols=values.shape[1] if values.ndim == 2 else 1,
                )
            )
        is_row_wise = block.values.ndim == 1
        tensor = TensorEntry(
            dtype=dtype_name(block.values.dtype),
            shape=(block.num_rows,) if is_row_wise else (block.num_rows, block.num_cols),
            blocks=tuple(entries),
        )
        _add(tables, block, tensor)
    return tables


def _add(tables: dict[str, TableEntry], block: TensorBlock, tensor: TensorEntry) -> None:
    table = tables.get(block.key)
    tensors = dict(table.tensors) if table else {}
    if block.name in tensors:
        tensor = _appended(f"{block.key}/{block.name}", tensors[block.name], tensor)
    tensors[block.name] = tensor
    tables[block.key] = TableEntry(rows=block.num_rows, cols=block.num_cols, tensors=tensors)


def _cut(block: TensorBlock, max_file_bytes: int) -> Iterator[tuple[int, Tensor]]:
    rows = block.values.shape[0]
    row_bytes = block.values.element_size() * (block.values.numel() // rows)
    step = max(1, max_file_bytes // row_bytes)
    for start in range(0, rows, step):
        yield block.row + start, block.values[start : start + step]


def _place(key: str, tensor: Tensor, rank: int, files: list[_File], max_file_bytes: int) -> str:
    size = tensor.numel() * tensor.element_size()
    if not files or (files[-1].tensors and files[-1].size + size > max_file_bytes):
        suffix = f"-{len(files):03d}" if files else ""
        files.append(_File(f"rank-{rank:05d}{suffix}.safetensors"))
    file = files[-1]
    if key in file.tensors:
        raise ValueError(f"two shards of this rank hold the same block {key}")
    file.tensors[key] = tensor
    file.size += size
    return file.name


def _joined(key: str, first: TableEntry, second: TableEntry) -> TableEntry:
    same = (first.rows, first.cols, first.tensors.keys())
    if same != (second.rows, second.cols, second.tensors.keys()):
        raise ValueError(f"shards of {key} disagree on the size of the table or on its states")
    tensors = {
        name: _appended(f"{key}/{name}", tensor, second.tensors[name])
        for name, tensor in first.tensors.items()
    }
    return TableEntry(rows=first.rows, cols=first.cols, tensors=tensors)


def _appended(name: str, first: TensorEntry, second: TensorEntry) -> TensorEntry:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        raise ValueError(f"shards of {name} disagree on its type or shape")
    return TensorEntry(dtype=first.dtype, shape=first.shape, blocks=first.blocks + second.blocks)
