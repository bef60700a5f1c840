"""Reading slices of logical tensors out of a checkpoint's files, each checked against its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prismrec.checkpoint.directory import check_size
from prismrec.checkpoint.manifest import (
    DTYPES,
    DenseEntry,
    DenseGroup,
    FileEntry,
    Manifest,
    TensorEntry,
    read_manifest,
)
from prismrec.checkpoint.regions import Region, overlaps
from prismrec.checkpoint.row_state import RowState, Source, Spans, sources
from prismrec.checkpoint.snapshot import WEIGHT
from prismrec.config import UserError, nearest

_CHUNK_BYTES = 16 << 20
_CHUNK_ROWS = 1 << 21


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
            file = self.path / name
            _check_file(file, self.manifest.files[name])
            try:
                self._files[name] = self._stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise UserError(f"{file}: not a safetensors file ({error})") from error

    def verify_copies(self) -> None:
        """Compare the files that were copied from elsewhere with the manifest.

        Raises:
            UserError: one is missing or damaged.
        """
        for name, entry in self.manifest.copies.items():
            _check_file(self.path / name, entry)

    def table(self, table: str, set_name: str, name: str = WEIGHT) -> Tensor:
        """A whole logical tensor: the weight (rows, cols) of a table in one set, or a state.

        Row-wise state comes as one number for a row, the mean over the set's columns.

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
        if entry.is_row_wise:
            whole = (key, 0, self.manifest.tables[key].cols)
            self.fill_rows(RowState(name, 0, (whole,), out))
        else:
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
        """Copy a block of a weight or element-wise state into `out`, fp32 to fp16 or back.

        Args:
            name: of the tensor, for errors.
            entry: the stored tensor.
            row: first row of the block.
            col: first column of the block.
            out: (rows, cols), on any device, of any strides.

        Raises:
            UserError: a file is damaged, or a value is too large for `out`'s type.
        """
        for block, region in overlaps(entry, Region(row, out.shape[0], col, out.shape[1])):
            self.verify([block.file])
            shape = (block.rows, block.cols)
            stored = self._slice(block.file, block.key, entry.dtype, shape)
            source, target = region.within(block.row, block.col), region.within(row, col)
            assign(name, out[target], stored[source])

    def fill_rows(self, state: RowState) -> None:
        """Fill row-wise state: every number with the mean of those stored for its columns.

        Raises:
            UserError: a file is damaged.
        """
        found = sources(self.manifest, state)
        self.verify(each.file for each in found)
        first, rows = state.row, len(state.values)
        for start in range(first, first + rows, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, first + rows)
            out = state.values[start - first : stop - first]
            # Exact in float64: the mean of equal float32 numbers is that number.
            sums = torch.zeros(stop - start, dtype=torch.float64)
            for each in found:
                low, high = max(start, each.row), min(stop, each.row + each.rows)
                if low < high:
                    sums[low - start : high - start] += each.cols * self._rows(each, low, high)
            assign(state.label, out, sums / state.cols)

    def gather(self, entry: TensorEntry, rows: Tensor, col: int = 0, cols: int = 1) -> Tensor:
        """Any rows of a logical tensor; only their pages of the files are read.

        Args:
            entry: the stored tensor.
            rows: (n,) int64 rows, each in the table.
            col: first column.
            cols: number of columns.

        Returns:
            (n, cols) in the stored type, or (n,) numbers of row-wise state: where several stand for
            these columns, the largest.

        Raises:
            UserError: a file is damaged.
        """
        shape = (len(rows),) if entry.is_row_wise else (len(rows), cols)
        out = torch.zeros(shape, dtype=DTYPES[entry.dtype])
        filled = torch.zeros(len(rows), dtype=torch.bool)
        first = int(rows.min()) if len(rows) else 0
        count = int(rows.max()) - first + 1 if len(rows) else 0
        for block, region in overlaps(entry, Region(first, count, col, cols)):
            here = ((rows >= block.row) & (rows < block.row + block.rows)).nonzero().squeeze(1)
            if not len(here):
                continue
            self.verify([block.file])
            size = (block.rows,) if entry.is_row_wise else (block.rows, block.cols)
            self._slice(block.file, block.key, entry.dtype, size)
            mapped = self._files[block.file].get_tensor(block.key)
            found = mapped.index_select(0, rows[here] - block.row)
            if entry.is_row_wise:
                most = torch.maximum(out[here], found)
                out[here] = torch.where(filled[here], most, found)
                filled[here] = True
            else:
                source, target = region.within(block.row, block.col), region.within(0, col)
                out[here, target[1]] = found[:, source[1]]
        return out

    def gather_state(self, name: str, spans: Spans, rows: Tensor) -> Tensor:
        """Row-wise state of any rows, for columns of some sets of one table.

        Args:
            name: of the state.
            spans: the columns that each number is to stand for.
            rows: (n,) int64 rows, each in the table.

        Returns:
            (n,) float64: the mean of the numbers stored for these columns.

        Raises:
            UserError: a file is damaged.
        """
        whole = torch.empty(self.manifest.tables[spans[0][0]].rows, device="meta")
        state = RowState(name, 0, spans, whole)
        sums = torch.zeros(len(rows), dtype=torch.float64)
        for each in sources(self.manifest, state):
            here = ((rows >= each.row) & (rows < each.row + each.rows)).nonzero().squeeze(1)
            if len(here):
                self.verify([each.file])
                self._slice(each.file, each.key, each.dtype, (each.rows,))
                mapped = self._files[each.file].get_tensor(each.key)
                found = mapped.index_select(0, rows[here] - each.row).double()
                sums[here] += each.cols * found
        return sums / state.cols

    def _rows(self, source: Source, start: int, stop: int) -> Tensor:
        stored = self._slice(source.file, source.key, source.dtype, (source.rows,))
        rows: Tensor = stored[start - source.row : stop - source.row]
        return rows.double()

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


def _check_file(file: Path, entry: FileEntry) -> None:
    check_size(file, entry.size)
    if _sha256(file) != entry.sha256:
        raise UserError(
            f"{file}: its SHA-256 is not the one in the manifest; the checkpoint is damaged, use "
            "another"
        )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
