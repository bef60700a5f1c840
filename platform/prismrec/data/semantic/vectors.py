"""Vectors of items, as files hold them: NumPy arrays or Parquet, read a block of rows at a time.

Notation: n items, D width, b rows of a block.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError
from prismrec.data.encode.ids import NULL_ID, Ints
from prismrec.data.rows import Floats
from prismrec.data.vectors import VECTOR, VectorFiles

_BLOCK_ROWS = 16_384
_ID_TYPES = "iu"


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """The vectors of a file, or of the Parquet files of a directory.

    Args:
        path: the file or directory.
        num_rows: n.
        width: D.
        digest: SHA-256 of the file, or of the digests of the files.
        blocks: gives (b,) ids and (b, D) finite float32 vectors, all n of them, in the order of the file.
    """

    path: Path
    num_rows: int
    width: int
    digest: str
    blocks: Callable[[], Iterator[tuple[Ints, Floats]]]

    def drawn(self, count: int, seed: int) -> Floats:
        """(min(n, count), D) vectors drawn without replacement, in the order of the file.

        Memory is that of what is drawn, and 8 bytes for each of the n.
        """
        if count >= self.num_rows:
            return np.concatenate([vectors for _, vectors in self.blocks()])
        chosen = np.sort(np.random.default_rng(seed).permutation(self.num_rows)[:count])
        drawn = np.empty((count, self.width), np.float32)
        first = done = 0
        for ids, vectors in self.blocks():
            stop = int(np.searchsorted(chosen, first + len(ids)))
            drawn[done:stop] = vectors[chosen[done:stop] - first]
            first, done = first + len(ids), stop
        return drawn


def open_vectors(path: Path) -> ItemVectors:
    """The vectors of a file, found by its ending.

    Args:
        path: `.npz` with one array of integers (n,) and one of numbers (n, D), under any names; `.npy`
            with an array (n, D), whose row numbers are the ids; else Parquet with columns `id` and
            `vector`, where a null id is left out. A `.npy` and Parquet are read a block at a time.

    Raises:
        UserError: the file is missing or none of these, an id is there twice, or (when its block is
            read) a number is not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file of vectors")
    if path.suffix in (".npz", ".npy"):
        ids, vectors = _npz(path) if path.suffix == ".npz" else _npy(path)
        _check_once(path, ids)
        digest = _digest([path])
        rows, width = vectors.shape
        return ItemVectors(path, rows, width, digest, lambda: _blocks(path, ids, vectors))
    return _parquet(path)


def _npz(path: Path) -> tuple[Ints, Floats]:
    with _loaded(path) as arrays:
        try:
            shapes = {name: arrays[name] for name in arrays.files}
        except (ValueError, zipfile.BadZipFile) as error:  # an array of objects needs a pickle
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as arrays of numbers ({reason})") from None
    ids = [each for each in shapes.values() if each.ndim == 1 and each.dtype.kind in _ID_TYPES]
    vectors = [each for each in shapes.values() if each.ndim == 2 and each.dtype.kind == "f"]
    if len(ids) != 1 or len(vectors) != 1 or len(ids[0]) != len(vectors[0]):
        held = ", ".join(f"{name} {each.dtype}{each.shape}" for name, each in shapes.items())
        raise UserError(
            f"{path}: one array of integers (n,) and one of floating-point numbers (n, width) are "
            f"needed, but it holds {held or 'nothing'}"
        )
    return ids[0].astype(np.int64), vectors[0]


def _npy(path: Path) -> tuple[Ints, Floats]:
    vectors = _loaded(path, mmap_mode="r")
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(
            f"{path}: an array (n, width) of floating-point numbers is needed, got "
            f"{vectors.dtype}{vectors.shape}"
        )
    return np.arange(len(vectors)), vectors


def _loaded(path: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """An array, or the archive of several."""
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as NumPy arrays ({reason}); write it again"
        ) from None


def _blocks(path: Path, ids: Ints, vectors: Floats) -> Iterator[tuple[Ints, Floats]]:
    for start in range(0, len(ids), _BLOCK_ROWS):
        block = np.asarray(vectors[start : start + _BLOCK_ROWS], np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise UserError(f"{path}: row {row} holds a number that is not finite; leave it out")
        yield ids[start : start + _BLOCK_ROWS], block


def _parquet(path: Path) -> ItemVectors:
    files = VectorFiles(path, "id", _parquet_width(path), "the first of them")

    def blocks() -> Iterator[tuple[Ints, Floats]]:
        for block in files.blocks():
            known = block.keys != NULL_ID
            if known.any():
                yield block.keys[known], block.vectors[known]

    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in blocks())])
    _check_once(path, ids)
    return ItemVectors(path, len(ids), _parquet_width(path), _digest(files.files), blocks)


def _parquet_width(path: Path) -> int:
    """Numbers of the first vector; 1 where there is none, or no column, which the reader then tells."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                if VECTOR not in opened.schema_arrow.names:
                    return 1
                for batch in opened.iter_batches(batch_size=1, columns=[VECTOR]):
                    return len(batch.column(0)[0].as_py() or [0])
        except (pa.ArrowException, OSError, TypeError):
            return 1
    return 1


def _check_once(path: Path, ids: Ints) -> None:
    if not len(ids):
        raise UserError(f"{path}: there is no vector in it")
    ordered = np.sort(ids)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise UserError(f"{path}: id {ordered[twice[0]]} is there twice; keep one of its vectors")


def _digest(files: list[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
