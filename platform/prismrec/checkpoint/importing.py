"""A copy of a checkpoint in which a file's vectors stand in one set of one table.

Only the rows of these vectors are written; everything else of the data files stays byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prismrec.checkpoint.manifest import (
    DTYPES,
    MANIFEST,
    Block,
    FileEntry,
    Manifest,
    TensorEntry,
    sync_directory,
    write_manifest,
)
from prismrec.checkpoint.snapshot import TOUCHED, WEIGHT
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import UserError
from prismrec.data.rows import Floats, Ints
from prismrec.data.vectors import VectorFiles
from prismrec.embeddings.imported import Fit, imported_rows

_TYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32}
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to.

    Args:
        rows: rows that have a vector of the file now.
        of: rows of the table.
        vectors: vectors of the file; those without a row are left out.
    """

    rows: int
    of: int
    vectors: int


def import_vectors(
    tables: CheckpointTables, table: str, set_name: str, vectors: str | Path, out: Path
) -> Imported:
    """Copy a checkpoint to `out` with vectors of a file in it; `out` appears whole or not at all.

    The optimizer's state stays as it is. Where it is known when rows were touched, these rows count
    as touched by the checkpoint's step.

    Args:
        tables: the checkpoint, open.
        table: name of the table.
        set_name: name of the set.
        vectors: a Parquet file, or a directory of them, with columns `id` and `vector`.
        out: the directory to make.

    Raises:
        UserError: see `VectorFiles` and `imported_rows`; the ids of the table share rows; the
            checkpoint is damaged; or `out` is there already.
    """
    row_ids = tables.ids.row_ids(table)
    if row_ids is None:
        raise UserError(
            f"--table {table}: ids of kind '{tables.ids.kind(table)}' have no rows of their own that "
            "could be filled"
        )
    entry = tables.entry(table, set_name)
    files = VectorFiles(vectors, "id", entry.cols, f"set '{set_name}'")
    if out.exists():
        raise UserError(f"{out}: is there already; choose a directory to make")
    weight = entry.tensors[WEIGHT]
    written = [weight, *(each for name, each in entry.tensors.items() if name == TOUCHED)]
    changed = {block.file for tensor in written for block in tensor.blocks}
    tables.reader.verify(changed)
    stage = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        _copy(tables.reader.path, stage, changed)
        fit = Fit(1.0, float(torch.finfo(DTYPES[weight.dtype]).max))
        count = 0
        patches = [_Patch(stage, tensor) for tensor in written]
        for rows, found in imported_rows(files, row_ids, range(entry.rows), fit):
            patches[0].write(rows, found)
            for patch in patches[1:]:
                patch.write(rows, np.full(len(rows), tables.step, np.int32))
            count += len(rows)
        for patch in patches:
            patch.close()
        write_manifest(stage, _manifest(tables.reader.manifest, stage, changed))
        sync_directory(stage)
        stage.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose another") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Imported(count, entry.rows, files.num_rows)


class _Patch:
    """Writes into rows of one logical tensor in the data files of a directory."""

    def __init__(self, directory: Path, entry: TensorEntry) -> None:
        self._blocks = [
            (block, _mapped(directory / block.file, block, entry)) for block in entry.blocks
        ]

    def write(self, rows: Ints, values: Floats | NDArray[np.int32]) -> None:
        """Put (n, D) vectors, or (n,) numbers of row-wise state, into rows."""
        for block, mapped in self._blocks:
            here = (rows >= block.row) & (rows < block.row + block.rows)
            part = values[here]
            if values.ndim == 2:
                part = part[:, block.col : block.col + block.cols]
            mapped[rows[here] - block.row] = part

    def close(self) -> None:
        """Flush what was written."""
        for _, mapped in self._blocks:
            mapped.flush()


def _mapped(file: Path, block: Block, entry: TensorEntry) -> np.memmap[Any, Any]:
    """A stored tensor in its file, to be written in place."""
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        start, _ = json.loads(stream.read(size))[block.key]["data_offsets"]
    shape = (block.rows,) if entry.is_row_wise else (block.rows, block.cols)
    return np.memmap(file, _TYPES[entry.dtype], "r+", 8 + size + start, shape)


def _copy(source: Path, stage: Path, changed: set[str]) -> None:
    """Copy the files that will change, and link the others where the file system allows it."""
    stage.mkdir(parents=True)
    for path in source.iterdir():
        target = stage / path.name
        if path.name == MANIFEST:
            continue
        if path.name in changed:
            shutil.copyfile(path, target)
        else:
            _link(path, target)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _manifest(manifest: Manifest, stage: Path, changed: set[str]) -> Manifest:
    files = dict(manifest.files)
    for name in changed:
        files[name] = _entry(stage / name)
    return manifest.model_copy(update={"files": files})


def _entry(file: Path) -> FileEntry:
    """Size and hash of a file, which is on the disk on return."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
        os.fsync(stream.fileno())
    return FileEntry(size=file.stat().st_size, sha256=digest.hexdigest())
