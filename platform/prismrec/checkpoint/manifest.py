"""What a checkpoint says about itself: the schema of `manifest.json`, written last and read strictly.

A directory without a manifest that this module accepts is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from prismrec.config import UserError

FORMAT: Literal["prismrec-checkpoint"] = "prismrec-checkpoint"
VERSION: Literal[2] = 2
MANIFEST = "manifest.json"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of element types in the safetensors format."""

DenseGroup = Literal["dense", "dense_optimizer", "ema"]

_Count = Annotated[int, Field(ge=0)]
# A plain name of this fixed form cannot leave the directory.
_FileName = Annotated[str, StringConstraints(pattern=r"^rank-[0-9]{5,}(-[0-9]{3,})?\.safetensors$")]
_CopyName = Annotated[str, StringConstraints(pattern=r"^[a-z]+-[0-9]{4,}\.(parquet|json|npz|npy)$")]
_DType = Annotated[str, StringConstraints(pattern="^(" + "|".join(DTYPES) + ")$")]


def dtype_name(dtype: torch.dtype) -> str:
    """Name of an element type in the files.

    >>> dtype_name(torch.float16)
    'F16'
    """
    for name, each in DTYPES.items():
        if each == dtype:
            return name
    raise ValueError(f"a checkpoint cannot hold {dtype}; it holds {', '.join(map(str, DTYPES))}")


class _Entry(BaseModel):
    """Frozen, strict, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Entry):
    """One data file: its size in bytes and its SHA-256 in hexadecimal."""

    size: _Count
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Block(_Entry):
    """A block of a logical tensor and where it is stored.

    Rows `row .. row + rows` and columns `col .. col + cols` of the logical tensor are the tensor
    `key` of the safetensors file `file`. In row-wise state that tensor has one number for each of
    the rows, which stands for all of these columns; sets that share the numbers name the same key.
    """

    file: _FileName
    key: str
    row: _Count
    rows: Annotated[int, Field(ge=1)]
    col: _Count
    cols: Annotated[int, Field(ge=1)]


class TensorEntry(_Entry):
    """A logical tensor cut into blocks.

    Args:
        dtype: name of its type.
        shape: (rows, cols), or (rows,) for row-wise state.
        blocks: what it is made of; they cover every row and column of the set once.
        per_row: most numbers that a row of row-wise state has; None for other tensors, and in a
            rank's part, which cannot know it.
    """

    dtype: _DType
    shape: Annotated[tuple[_Count, ...], Field(min_length=1, max_length=2)]
    blocks: tuple[Block, ...]
    per_row: _Count | None = None

    @property
    def is_row_wise(self) -> bool:
        """Whether it has numbers for rows and not for elements."""
        return len(self.shape) == 1


class TableEntry(_Entry):
    """One table in one set: its `weight` and its optimizer state, by name."""

    rows: _Count
    cols: _Count
    tensors: dict[str, TensorEntry]

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if "weight" not in self.tensors:
            raise ValueError("a table has no weight")
        for name, tensor in self.tensors.items():
            allowed = [(self.rows, self.cols)] + ([(self.rows,)] if name != "weight" else [])
            if tensor.shape not in allowed:
                raise ValueError(f"{name} has shape {tensor.shape}, not one of {allowed}")
        return self


class DenseEntry(_Entry):
    """A tensor stored whole."""

    file: _FileName
    key: str
    dtype: _DType
    shape: tuple[_Count, ...]


class MapEntry(_Entry):
    """Which ids have the rows of a table that gives its rows to ids as they come.

    Args:
        rows: of the table.
        buckets: equal parts of the rows that ids are spread over; no other number fits the map.
        tensors: `ids`, `counts` and `last_seen` of the rows' owners, (rows, 1) each.
        newcomers: the same of ids without a row, (n,) each, of every rank that saw some.
    """

    rows: _Count
    buckets: Annotated[int, Field(ge=1)]
    tensors: dict[str, TensorEntry]
    newcomers: tuple[dict[str, DenseEntry], ...]

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        names = {"ids", "counts", "last_seen"}
        if {*self.tensors} != names or any({*each} != names for each in self.newcomers):
            raise ValueError(f"a map needs {', '.join(sorted(names))}")
        if any(tensor.shape != (self.rows, 1) for tensor in self.tensors.values()):
            raise ValueError(f"a tensor has not {self.rows} rows")
        return self


class Accumulator(_Entry):
    """Columns of a set that one number of a row's state stands for, and the sets that share it."""

    col: _Count
    cols: Annotated[int, Field(ge=1)]
    shared_with: tuple[str, ...]


class Conversion(_Entry):
    """How row-wise state was made to fit another cut of the columns.

    Args:
        tensor: `table/set/state`.
        step: of the checkpoint that it was read from.
        rule: "copy" where every number came from one, "mean" where some came from several, each
            weighed by the columns it stood for.
        before: what the numbers of a row stood for in that checkpoint, from left to right.
        after: what they have stood for since.
    """

    tensor: str
    step: _Count
    rule: Literal["copy", "mean"]
    before: tuple[Accumulator, ...]
    after: tuple[Accumulator, ...]


class Part(_Entry):
    """What one rank wrote: its files and the blocks in them. Only rank 0 has what is not a table.

    Tables are keyed by `table/set`.
    """

    rank: _Count
    files: dict[_FileName, FileEntry]
    tables: dict[str, TableEntry]
    dense: dict[str, DenseEntry]
    dense_optimizer: dict[str, DenseEntry]
    ema: dict[str, DenseEntry]
    extra: dict[str, Any]
    copies: dict[_CopyName, FileEntry] = {}
    maps: dict[str, MapEntry] = {}


class Manifest(_Entry):
    """Everything a checkpoint holds.

    Args:
        step: training steps done.
        sequence: number of the save in its directory, counted from 1; the newest has the highest.
        save_id: names the very attempt that wrote it.
        world_size: ranks that wrote it.
        metric: what it scored, higher is better; None if it was not evaluated.
        files: every data file by name.
        tables: every logical table by `table/set`.
        dense: parameters and buffers by name.
        dense_optimizer: optimizer state of the dense parameters by `parameter/state`.
        ema: moving averages of parameters by name; may be empty.
        extra: what rank 0 gave besides tensors.
        copies: every file copied from elsewhere, such as a vocabulary, by name.
        conversions: the last one of every row-wise state that was ever converted, by tensor.
        maps: by table, which ids have its rows, where these are given to ids as they come.
    """

    format: Literal["prismrec-checkpoint"]
    version: Literal[2]
    step: _Count
    sequence: Annotated[int, Field(ge=1)]
    save_id: str
    world_size: Annotated[int, Field(ge=1)]
    metric: float | None
    files: dict[_FileName, FileEntry]
    tables: dict[str, TableEntry]
    dense: dict[str, DenseEntry]
    dense_optimizer: dict[str, DenseEntry]
    ema: dict[str, DenseEntry]
    extra: dict[str, Any]
    copies: dict[_CopyName, FileEntry] = {}
    conversions: tuple[Conversion, ...] = ()
    maps: dict[str, MapEntry] = {}

    def group(self, which: DenseGroup) -> dict[str, DenseEntry]:
        """The entries of one group of dense tensors."""
        groups: dict[DenseGroup, dict[str, DenseEntry]] = {
            "dense": self.dense,
            "dense_optimizer": self.dense_optimizer,
            "ema": self.ema,
        }
        return groups[which]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, table in self.tables.items():
            for name, tensor in table.tensors.items():
                problem = partition_problem(tensor, table.cols)
                if problem is None and tensor.per_row != numbers_per_row(tensor):
                    problem = f"a row has {numbers_per_row(tensor)} numbers, not {tensor.per_row}"
                if problem:
                    raise ValueError(f"{key}/{name}: {problem}")
        for table_name, ids in self.maps.items():
            for name, tensor in ids.tensors.items():
                problem = partition_problem(tensor, 1)
                if problem:
                    raise ValueError(f"{table_name}/{name}: {problem}")
        for file in self._named_files():
            if file not in self.files:
                raise ValueError(f"file {file} is not listed")
        return self

    def _named_files(self) -> Iterable[str]:
        for table in self.tables.values():
            for tensor in table.tensors.values():
                yield from (block.file for block in tensor.blocks)
        for group in (self.dense, self.dense_optimizer, self.ema):
            yield from (entry.file for entry in group.values())
        for ids in self.maps.values():
            yield from (b.file for tensor in ids.tensors.values() for b in tensor.blocks)
            yield from (entry.file for part in ids.newcomers for entry in part.values())


def partition_problem(tensor: TensorEntry, cols: int) -> str | None:
    """Why the blocks do not cover every row and column once; None if they do.

    Args:
        tensor: weight or state of a table.
        cols: columns of the table.
    """
    rows = tensor.shape[0]
    active: list[Block] = []
    area = 0
    for block in sorted(tensor.blocks, key=lambda b: (b.row, b.col)):
        place = f"block at row {block.row}, column {block.col}"
        if block.row + block.rows > rows or block.col + block.cols > cols:
            return f"{place} reaches outside of ({rows}, {cols})"
        active = [b for b in active if b.row + b.rows > block.row]
        if any(b.col < block.col + block.cols and block.col < b.col + b.cols for b in active):
            return f"{place} overlaps another"
        active.append(block)
        area += block.rows * block.cols
    if area != rows * cols:
        return f"blocks hold {area} of {rows * cols} elements"
    return None


def numbers_per_row(tensor: TensorEntry) -> int | None:
    """The most numbers that a row of row-wise state has; None for another tensor."""
    if not tensor.is_row_wise:
        return None
    changes = [(block.row, 1) for block in tensor.blocks]
    changes += [(block.row + block.rows, -1) for block in tensor.blocks]
    most = now = 0
    for _, change in sorted(changes):  # at one row, what ends comes before what begins
        now += change
        most = max(most, now)
    return most


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` so that it is either whole or absent, and on the disk on return."""
    content = json.loads(manifest.model_dump_json())
    content["sha256"] = _digest(content)
    write_durably(directory / MANIFEST, json.dumps(content, indent=1, sort_keys=True))


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises:
        UserError: there is none, it was damaged, it does not describe whole tensors, or it is of
            another format version.
    """
    file = Path(path) / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path} is not a checkpoint: {MANIFEST} cannot be read ({error.strerror}); name a "
            f"directory such as step-00001000 that holds one"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file}: not JSON ({error}); the checkpoint is damaged, use another"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a checkpoint; name a checkpoint directory")
    if content.get("version") not in (1, VERSION):
        raise UserError(
            f"{file}: format version {content.get('version')}, this program reads 1 and {VERSION}; "
            f"use the program version that wrote it"
        )
    if content.pop("sha256", None) != _digest(content):
        raise UserError(f"{file}: its SHA-256 is wrong; the checkpoint is damaged, use another")
    try:
        if content["version"] == 1:
            _upgrade(content)
        return Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{file}: {where}: {first['msg']}; the checkpoint is damaged, use another"
        ) from error


def _upgrade(content: dict[str, Any]) -> None:
    """Make version 2 of version 1, where row-wise state had one number for a row of a whole set.

    What does not look like version 1 is left for the check of version 2 to name.
    """
    content["version"] = VERSION
    with suppress(KeyError, TypeError, AttributeError):
        for table in content["tables"].values():
            for tensor in table["tensors"].values():
                if len(tensor["shape"]) == 1:
                    tensor["per_row"] = 1
                    for block in tensor["blocks"]:
                        block["cols"] = table["cols"]


def write_durably(file: Path, text: str) -> None:
    """Write a text file under another name, flush it to the disk, and give it its name."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
