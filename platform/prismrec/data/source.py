"""A data set on any file system: its files, row groups, schema and fingerprint."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from prismrec.config import Recipe, UserError
from prismrec.data.schema import FILE_NAME, DataSchema

_log = logging.getLogger(__name__)

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_OPEN_FILES = 8

Constant = int | str | None


@dataclass(frozen=True)
class Span:
    """What a file's footer says of one column in one row group; None where it does not say.

    Args:
        nulls: rows without a value.
        low: smallest value.
        high: largest value.
    """

    nulls: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class DataFile:
    """One Parquet file.

    Args:
        name: path under the data directory, with `/`.
        size: bytes.
        group_rows: rows of every row group.
        arrow: types of the columns in the file.
        constants: columns given by the directories `column=value` of its path.
        spans: statistics of the label and time columns, a `Span` for every row group.
    """

    name: str
    size: int
    group_rows: tuple[int, ...]
    arrow: pa.Schema
    constants: dict[str, Constant]
    spans: dict[str, tuple[Span, ...]]


@dataclass(frozen=True)
class DataSource:
    """An opened data set; made by `open_data`.

    Row groups are numbered over the whole data set, in the order of the files' names.

    Args:
        path: as the user wrote it.
        filesystem: where the files are.
        base: the directory within `filesystem`.
        schema: meaning of the columns.
        files: sorted by name.
        partition_types: Arrow type of every column that directories give.
        fingerprint: SHA-256 over names, sizes, row counts, types and `schema.json`.
        left_out: why, by name, for files that cannot be opened and were asked to be left out.
        counts: rows of every row group that pass, by conditions, for a data set that is met once;
            None where `count_rows` remembers them in a file instead.
    """

    path: str
    filesystem: fs.FileSystem
    base: str
    schema: DataSchema
    files: tuple[DataFile, ...]
    partition_types: dict[str, pa.DataType]
    fingerprint: str
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[tuple[str, ...], NDArray[np.int64]] | None = None
    group_file: NDArray[np.int64] = field(init=False)
    """File of every row group."""
    group_index: NDArray[np.int64] = field(init=False)
    """Number of every row group within its file."""
    group_rows: NDArray[np.int64] = field(init=False)
    """Rows of every row group."""

    def __post_init__(self) -> None:
        places = [(f, g) for f, file in enumerate(self.files) for g in range(len(file.group_rows))]
        rows = [n for file in self.files for n in file.group_rows]
        object.__setattr__(self, "group_file", np.array([f for f, _ in places], np.int64))
        object.__setattr__(self, "group_index", np.array([g for _, g in places], np.int64))
        object.__setattr__(self, "group_rows", np.array(rows, np.int64))

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return int(self.group_rows.sum())

    def file_path(self, file: int) -> str:
        """Path of a file within `filesystem`."""
        return f"{self.base}/{self.files[file].name}"

    def where(self, group: int) -> str:
        """A row group in words, for errors: `part-0.parquet: row group 3`."""
        return f"{self.files[self.group_file[group]].name}: row group {self.group_index[group]}"

    def arrow(self, file: int) -> pa.Schema:
        """Types of a file's columns, those of its directories included."""
        schema = self.files[file].arrow
        for name in self.files[file].constants:
            schema = schema.append(pa.field(name, self.partition_types[name]))
        return schema

    def fragments(self, file: int) -> list[ds.ParquetFileFragment]:
        """One Arrow dataset fragment for every row group of a file."""
        partition = None
        for name, value in self.files[file].constants.items():
            column = ds.field(name)
            scalar = pa.scalar(value, self.partition_types[name])
            here = column.is_null() if value is None else column == scalar
            partition = here if partition is None else partition & here
        fragment = ds.ParquetFileFormat().make_fragment(
            self.file_path(file), self.filesystem, partition
        )
        return list(fragment.split_by_row_group())


def open_data(
    path: str | os.PathLike[str], schema: DataSchema | None = None, *, skip_bad: bool = False
) -> DataSource:
    """List a data set and read its schema and the footers of its files.

    Args:
        path: a directory, or a URL that Arrow or fsspec knows (`s3://`, `gs://`, `memory://`).
        schema: meaning of the columns, in the place of `schema.json`.
        skip_bad: leave out files that are not Parquet, see `DataSource.left_out`. How many rows
            such a file had cannot be known, so that the data set is another one without it.

    Raises:
        UserError: the directory is missing, holds no Parquet file, no `schema.json` or no row;
            a file is not Parquet, or its columns do not fit the schema.
    """
    where = os.fspath(path)
    source = open_files(where, _list(*resolve_filesystem(where), where), schema, skip_bad=skip_bad)
    if source.num_rows == 0:
        raise UserError(
            f"{where}: its {len(source.files)} Parquet files hold 0 rows; write some data"
        )
    return source


class NotParquetError(UserError):
    """A file that is none of Parquet, or not yet: it is written up to its footer, which is its end."""


def open_files(
    path: str | os.PathLike[str],
    listed: Sequence[tuple[str, int]],
    schema: DataSchema | None = None,
    *,
    skip_bad: bool = False,
) -> DataSource:
    """Open some files of a data set; there may be none of them, or none with a row.

    Args:
        path: as for `open_data`.
        listed: name under the directory and bytes of every file, sorted.
        schema: as for `open_data`.
        skip_bad: as for `open_data`.

    Raises:
        NotParquetError: a file is not Parquet.
        UserError: there is no `schema.json`, or the columns of a file do not fit it.
    """
    where = os.fspath(path)
    filesystem, base = resolve_filesystem(where)
    if schema is None:
        text = _schema_text(filesystem, base, where)
        schema = DataSchema.parse(text, f"{where}/{FILE_NAME}")
    else:
        text = schema.model_dump_json()
    paths = [_constants(name) for name, _ in listed]
    types = _partition_types(paths)

    left_out: dict[str, str] = {}

    def footer(entry: tuple[tuple[str, int], dict[str, str]]) -> DataFile | None:
        (name, size), raw = entry
        try:
            return _read_footer(filesystem, f"{base}/{name}", (name, size, raw), (schema, types))
        except (pa.ArrowException, OSError) as error:
            if not skip_bad or isinstance(error, FileNotFoundError | PermissionError):
                raise NotParquetError(
                    f"{name}: not a Parquet file ({first_line(error)}); write it again, remove it, or "
                    "go on without it by data.on_bad_file = 'skip'"
                ) from None
            left_out[name] = first_line(error)
            return None

    with ThreadPoolExecutor(_OPEN_FILES) as pool:
        found = tuple(pool.map(footer, zip(listed, paths, strict=True)))
    files = tuple(each for each in found if each is not None)
    _warn(where, left_out, len(found))
    digest = _fingerprint(files, text)
    source = DataSource(where, filesystem, base, schema, files, types, digest, left_out)
    for index, file in enumerate(files):
        schema.check_arrow(source.arrow(index), list(schema.columns), f"{where}/{file.name}")
    return source


def open_recipe_data(recipe: Recipe) -> DataSource:
    """The data set that a recipe names, with files left out as `data.on_bad_file` says.

    Raises:
        UserError: see `open_data`.
    """
    return open_data(recipe.data.path, skip_bad=recipe.data.on_bad_file == "skip")


def read_schema(path: str | os.PathLike[str]) -> DataSchema:
    """The schema of a data set, whose Parquet files need not be there yet.

    Args:
        path: as for `open_data`.

    Raises:
        UserError: there is no `schema.json`, or it is none.
    """
    where = os.fspath(path)
    filesystem, base = resolve_filesystem(where)
    return DataSchema.parse(_schema_text(filesystem, base, where), f"{where}/{FILE_NAME}")


def resolve_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URL, and the path within it.

    Args:
        path: a local path, or a URL that Arrow or fsspec knows.

    Raises:
        UserError: neither knows it, or what it needs is not installed.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        filesystem, base = fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        try:
            other, base = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"'{path}' is on no file system that can be read ({error}); correct the path, or "
                "install the fsspec package of that file system"
            ) from None
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    return filesystem, base.rstrip("/")


def _list(filesystem: fs.FileSystem, base: str, where: str) -> list[tuple[str, int]]:
    """Relative name and size of every Parquet file, sorted by name."""
    kind = filesystem.get_file_info(base).type
    if kind == fs.FileType.NotFound:
        raise UserError(f"{where}: no such directory; data.path names a directory of Parquet files")
    if kind == fs.FileType.File:
        raise UserError(f"{where}: a file; data.path names the directory that holds it")
    found = list_files(filesystem, base)
    if not found:
        raise UserError(
            f"{where}: no *.parquet file in it or below; `prismrec data prepare` writes them"
        )
    return found


def list_files(filesystem: fs.FileSystem, base: str) -> list[tuple[str, int]]:
    """Name under a directory and bytes of every Parquet file in it or below, sorted by name.

    A file is one of the data set when its name ends with `.parquet` and no part of its path begins
    with `.` or `_`.
    """
    found = []
    for info in filesystem.get_file_info(fs.FileSelector(base, recursive=True)):
        name = info.path.lstrip("/")[len(base.lstrip("/")) :].lstrip("/")
        hidden = any(part[0] in "_." for part in name.split("/"))
        if info.type == fs.FileType.File and name.endswith(".parquet") and not hidden:
            found.append((name, int(info.size)))
    return sorted(found)


def first_line(error: Exception) -> str:
    """What Arrow said, in one printable line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return "".join(each for each in lines[0] if each.isprintable())


def _warn(where: str, left_out: dict[str, str], count: int) -> None:
    """Tell which files are left out.

    Raises:
        UserError: none is left.
    """
    for name, why in sorted(left_out.items()):
        _log.warning(
            "%s/%s: not a Parquet file (%s); it is left out, as data.on_bad_file = 'skip' says",
            where, name, why,
        )  # fmt: skip
    if count and len(left_out) == count:
        raise UserError(f"{where}: none of its {count} files is a Parquet file; write them again")


def _schema_text(filesystem: fs.FileSystem, base: str, where: str) -> str:
    try:
        with filesystem.open_input_stream(f"{base}/{FILE_NAME}") as stream:
            return str(stream.read().decode())
    except FileNotFoundError:
        raise UserError(
            f"{where}: no {FILE_NAME} beside the Parquet files; `prismrec data prepare` writes it, "
            "docs/data.md describes it"
        ) from None


def _constants(name: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in name.split("/")[:-1] if "=" in part]
    return {unquote(key): unquote(value) for key, _, value in pairs}


def _partition_types(paths: Sequence[dict[str, str]]) -> dict[str, pa.DataType]:
    """A directory column is int64 where every value of it is an integer, else a string."""
    values: dict[str, set[str]] = {}
    for raw in paths:
        for key, value in raw.items():
            values.setdefault(key, set()).add(value)
    return {
        key: pa.int64() if all(map(_is_int, some - {_NULL_PARTITION})) else pa.string()
        for key, some in values.items()
    }


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _read_footer(
    filesystem: fs.FileSystem,
    path: str,
    listed: tuple[str, int, dict[str, str]],
    kinds: tuple[DataSchema, dict[str, pa.DataType]],
) -> DataFile:
    (name, size, raw), (schema, types) = listed, kinds
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        metadata, arrow = file.metadata, file.schema_arrow.remove_metadata()
    constants: dict[str, Constant] = {}
    for key, value in raw.items():
        if key not in arrow.names:
            is_int = pa.types.is_integer(types[key])
            constants[key] = None if value == _NULL_PARTITION else int(value) if is_int else value
    groups = range(metadata.num_row_groups)
    rows = tuple(metadata.row_group(g).num_rows for g in groups)
    spans = _spans(metadata, schema)
    return DataFile(name, size, rows, arrow, constants, spans)


def _spans(metadata: pq.FileMetaData, schema: DataSchema) -> dict[str, tuple[Span, ...]]:
    wanted = {name for name, column in schema.columns.items() if column.kind in ("label", "time")}
    spans: dict[str, tuple[Span, ...]] = {}
    for column in range(metadata.num_columns):
        name = metadata.schema.column(column).path
        if name in wanted:
            groups = range(metadata.num_row_groups)
            spans[name] = tuple(_span(metadata.row_group(g).column(column)) for g in groups)
    return spans


def _span(chunk: pq.ColumnChunkMetaData) -> Span:
    statistics = chunk.statistics
    if statistics is None:
        return Span(None, None, None)
    nulls = statistics.null_count if statistics.has_null_count else None
    if not statistics.has_min_max:
        return Span(nulls, None, None)
    return Span(nulls, statistics.min, statistics.max)


def _fingerprint(files: Sequence[DataFile], schema_text: str) -> str:
    digest = hashlib.sha256(schema_text.encode())
    for file in files:
        types = [f"{column.name}:{column.type}" for column in file.arrow]
        digest.update(repr((file.name, file.size, file.group_rows, types)).encode())
    return digest.hexdigest()
