"""Reading slices of logical tensors out of a checkpoint's files, each checked against its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prismrec.checkpoint.directory import check_size
from prismrec.checkpoint.manifest import (
    DTYPES,
    Block,
    DenseEntry,
    DenseGroup,
    Manifest,
    TensorEntry,
    read_manifest,
)
from prismrec.checkpoint.snapshot import WEIGHT
from prismrec.config import UserError, nearest

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a logical tensor; of a row-wise tensor, column 0 to 1."""

    row: int
    rows: int
    col: int
    cols: int

    def overlap(self, block: Block) -> Region | None:
        """What the region and a stored block share; None if nothing."""
        row, col = max(self.row, block.row), max(self.col, block.col)
        rows = min(self.row + self.rows, block.row + block.rows) - row
        cols = min(self.col + self.cols, block.col + block.cols) - col
        return Region(row, rows, col, cols) if rows > 0 and cols > 0 else None

    def within(self, row: int, col: int) -> tuple[slice, slice]:
        """The region as slices of a tensor whose first element is at (row, col)."""
        top, left = self.row - row, self.col - col
        return slice(top, top + self.rows), slice(left, left + self.cols)


class CheckpointReader:
    """An open checkpoint. A context manager; reads every byte through safetensors, none by pickle.

    The SHA-256 of a file is computed once, before the first value is taken from it.

    Args:
        path: the checkpoint's directory.

    Raises:
        UserError: `path` is not a checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(path)
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.clear()
        self._stack.close()

    def verify(self, files: Iterable[str]) -> None:
        """Compare the sizes and hashes of files with the manifest.

        Raises:
            UserError: one is missing, damaged, or not a safetensors file.
        """
        for name in sorted(set(files) - self._files.keys()):
            file, entry = self.path / name, self.manifest.files[name]
            check_size(file, entry.size)
            if _sha256(file) != entry.sha256:
                raise UserError(
                    f"{file}: its SHA-256 is not the one in the manifest; the checkpoint is "
                    f"damaged, use another"
                )
            try:
                self._files[name] = self._stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise UserError(f"{file}: not a safetensors file ({error})") from error

    def table(self, table: str, set_name: str, name: str = WEIGHT) -> Tensor:
        """A whole logical tensor: the weight (rows, cols) of a table in one set, or a state.

        Raises:
            UserError: there is no such table, set or state, or a file is damaged.
        """
        key = f"{table}/{set_name}"
        if key not in self.manifest.tables:
            raise UserError(
                f"{self.path}: no table '{key}'; {nearest(key, tuple(self.manifest.tables))}"
            )
        tensors = self.manifest.tables[key].tensors
        if name not in tensors:
            raise UserError(f"{self.path}: {key} has no '{name}'; {nearest(name, tuple(tensors))}")
        entry = tensors[name]
        out = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        self.fill(f"{key}/{name}", entry, 0, 0, out)
        return out

    def dense(self, which: DenseGroup = "dense") -> dict[str, Tensor]:
        """The tensors of one group by name; `ema` may have none.

        Raises:
            UserError: a file is damaged.
        """
        return {name: self.entry(each) for name, each in self.manifest.group(which).items()}

    def entry(self, entry: DenseEntry) -> Tensor:
        """One tensor that is stored whole."""
        self.verify([entry.file])
        self._slice(entry.file, entry.key, entry.dtype, entry.shape)
        return self._files[entry.file].get_tensor(entry.key)

    def fill(self, name: str, entry: TensorEntry, row: int, col: int, out: Tensor) -> None:
        """Copy a block of a logical tensor into `out`, converting between fp32 and fp16.

        Args:
            name: of the tensor, for errors.
            entry: the stored tensor.
            row: first row of the block.
            col: first column of the block; 0 if row-wise.
            out: (rows, cols) or, if row-wise, (rows,); on any device, of any strides.

        Raises:
            UserError: a file is damaged, or a value is too large for `out`'s type.
        """
        for block, region in overlaps(entry, row, col, out):
            self.verify([block.file])
            shape = (block.rows, block.cols)[: len(entry.shape)]
            stored = self._slice(block.file, block.key, entry.dtype, shape)
            source = region.within(block.row, block.col)[: len(entry.shape)]
            target = region.within(row, col)[: len(entry.shape)]
            assign(name, out[target], stored[source])

    def _slice(self, file: str, key: str, dtype: str, shape: tuple[int, ...]) -> Any:
        try:
            stored = self._files[file].get_slice(key)
        except SafetensorError as error:
            raise UserError(f"{self.path / file}: {error}; the checkpoint is damaged") from error
        if stored.get_dtype() != dtype or tuple(stored.get_shape()) != shape:
            raise UserError(
                f"{self.path / file}: {key} is {stored.get_dtype()} {stored.get_shape()}, the "
                f"manifest says {dtype} {list(shape)}; the checkpoint is damaged"
            )
        return stored


def overlaps(entry: TensorEntry, row: int, col: int, out: Tensor) -> Iterator[tuple[Block, Region]]:
    """The stored blocks that hold a part of `out`, whose first element is at (row, col)."""
    region = Region(row, out.shape[0], col, out.shape[1] if out.ndim == 2 else 1)
    for block in entry.blocks:
        shared = region.overlap(block)
        if shared is not None:
            yield block, shared


def assign(name: str, out: Tensor, values: Tensor) -> None:
    """Copy values of the same shape into `out`, on its device and in its type.

    Raises:
        UserError: a finite value is beyond `out`'s type.
    """
    converted = values.to(out.dtype)
    if converted.dtype == torch.float16 and values.dtype != torch.float16:
        if bool((converted.isinf() & values.isfinite()).any()):
            raise UserError(
                f"{name}: a value of the checkpoint is over 65504 and does not fit fp16; "
                f"use embedding.data_type = 'fp32'"
            )
    with torch.no_grad():
        out.copy_(converted)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
