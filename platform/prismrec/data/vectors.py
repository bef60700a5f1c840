"""Parquet files of vectors by id, written and read a block of rows at a time.

The column `vector` is a list of numbers of one length. The rows are named by `id`, null where a row
stands for no id, or by `row` where ids have no rows of their own.

Notation: n rows of a block, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prismrec.config import UserError, nearest
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.rows import Floats, Ints
from prismrec.data.values import ints
from prismrec.data.write import ParquetParts

Key = Literal["id", "row"]
VECTOR = "vector"
FACTS = b"prismrec"
"""Key of the file's metadata under which JSON says what the vectors are."""

_GROUP_BYTES = 32 * 2**20
_GROUPS_PER_FILE = 32
_READ_ROWS = 16_384
_PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": ["id", "row"]}
"""Trained numbers neither repeat nor compress; the range of ids lets a reader skip row groups."""


class VectorWriter:
    """Writes `part-00000.parquet`, ... with columns for the keys and float32 vectors.

    Args:
        directory: where; exists.
        width: D.
        keys: the key columns, in order.
        facts: what the vectors are, kept in each file as JSON.
    """

    def __init__(
        self, directory: Path, width: int, keys: tuple[Key, ...], facts: Mapping[str, Any]
    ) -> None:
        fields = [(key, pa.int64()) for key in keys]
        schema = pa.schema([*fields, (VECTOR, pa.list_(pa.float32(), width))])
        self._schema = schema.with_metadata({FACTS: json.dumps(dict(facts)).encode()})
        self._directory = directory
        group = max(1024, _GROUP_BYTES // (4 * width + 8 * len(keys)))
        self._parts = ParquetParts(directory, self._schema, group, group * _GROUPS_PER_FILE, _PLAIN)

    @property
    def num_rows(self) -> int:
        """Rows in the files so far; all of them after `close`."""
        return self._parts.num_rows

    def write(self, keys: Mapping[Key, Ints], vectors: Floats) -> None:
        """Add (n, D) vectors with their keys in order; `NULL_ID` is written as null."""
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        columns = [pa.array(each, mask=each == NULL_ID) for each in keys.values()]
        columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        self._parts.add(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Finish the files; without a row there is still one."""
        self._parts.close()
        if self._parts.num_rows == 0:
            pq.write_table(self._schema.empty_table(), self._directory / "part-00000.parquet")


@dataclass(frozen=True, slots=True)
class VectorBlock:
    """Some rows of one file.

    Args:
        file: the file.
        first: number of the first of these rows in the file, counted from 0.
        keys: (n,) ids, `NULL_ID` for null, or rows.
        vectors: (n, D) float32, all finite.
        rows: (n,) the column `row`; None where the file has none or it is the key.
    """

    file: Path
    first: int
    keys: Ints
    vectors: Floats
    rows: Ints | None = None

    def place(self, index: int) -> str:
        """Where one of the rows is, for errors."""
        return f"{self.file}: row {self.first + index}"


class VectorFiles:
    """A Parquet file, or all Parquet files of a directory, with vectors of one width.

    Args:
        path: the file or directory.
        key: the column that names the rows.
        width: D.
        used_as: what the width belongs to, for errors.

    Raises:
        UserError: nothing to read, a column is missing or of another type, or the files say that
            the vectors have another width.
    """

    def __init__(self, path: str | Path, key: Key, width: int, used_as: str) -> None:
        self._key, self._width, self._used_as = key, width, used_as
        self.files = _files(Path(path))
        """The files, in the order of their names."""
        self.num_rows = 0
        """Rows of all files."""
        for file in self.files:
            with _opened(file) as opened:
                self._check_schema(file, opened.schema_arrow)
                self.num_rows += opened.metadata.num_rows

    def blocks(self, low: int | None = None, high: int | None = None) -> Iterator[VectorBlock]:
        """The rows, a bounded number at a time.

        Args:
            low: with `high`, row groups without a key in low..high-1 and without a null may be left
                out, where the file says which keys it holds.
            high: see `low`.

        Raises:
            UserError: a vector is missing, of another width or not finite, or a row group cannot
                be decoded; it names file, column and row.
        """
        for file in self.files:
            with _opened(file) as opened:
                first = 0
                for group in range(opened.metadata.num_row_groups):
                    facts = opened.metadata.row_group(group)
                    if low is None or high is None or _may_hold(facts, self._key, low, high):
                        yield from self._read(file, opened, group, first)
                    first += facts.num_rows

    def _read(
        self, file: Path, opened: pq.ParquetFile, group: int, first: int
    ) -> Iterator[VectorBlock]:
        has_rows = self._key == "id" and "row" in opened.schema_arrow.names
        columns = [self._key, VECTOR, *(["row"] if has_rows else [])]
        batches = opened.iter_batches(batch_size=_READ_ROWS, row_groups=[group], columns=columns)
        try:
            for batch in batches:
                place = file, first
                keys = self._keys(batch.column(self._key), place)
                vectors = self._vectors(batch.column(VECTOR), place)
                rows = ints(batch.column("row"), NULL_ID) if has_rows else None
                yield VectorBlock(file, first, keys, vectors, rows)
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file}: row group {group} cannot be decoded: {reason}; write the file again"
            ) from error

    def _check_schema(self, file: Path, schema: pa.Schema) -> None:
        for name in (self._key, VECTOR):
            if name not in schema.names:
                raise UserError(
                    f"{file}: there is no column '{name}'; {nearest(name, schema.names)}; vectors "
                    f"are read from columns '{self._key}' (integers) and '{VECTOR}' (lists)"
                )
        type_ = schema.field(self._key).type
        if not pa.types.is_integer(type_):
            raise UserError(
                f"{file}: column '{self._key}' has type {type_}, but integers are needed"
            )
        lists = schema.field(VECTOR).type
        is_fixed = pa.types.is_fixed_size_list(lists)
        if not (is_fixed or pa.types.is_list(lists) or pa.types.is_large_list(lists)) or not (
            pa.types.is_floating(lists.value_type)
        ):
            raise UserError(
                f"{file}: column '{VECTOR}' has type {lists}, but a list of floating-point numbers "
                "is needed"
            )
        if is_fixed and lists.list_size != self._width:
            raise UserError(self._wrong_width(str(file), lists.list_size))

    def _wrong_width(self, place: str, found: int) -> str:
        return (
            f"{place}: column '{VECTOR}' holds vectors of {found} numbers, but {self._used_as} is "
            f"{self._width} wide; give vectors of {self._width} numbers or change the set's `dim`"
        )

    def _keys(self, column: pa.Array, place: tuple[Path, int]) -> Ints:
        file, first = place
        if pa.types.is_uint64(column.type) and column.drop_null():
            largest = pc.max(column).as_py()
            if largest > np.iinfo(np.int64).max:
                index = pc.index(column, pa.scalar(largest, column.type)).as_py()
                raise UserError(
                    f"{file}: row {first + index}: column '{self._key}' holds {largest}, which is "
                    "over the 64-bit integers; number the ids below 2^63"
                )
        return ints(column, NULL_ID)

    def _vectors(self, column: pa.Array, place: tuple[Path, int]) -> Floats:
        file, first = place
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != self._width)
        if len(wrong):
            where = f"{file}: row {first + wrong[0]}"
            if lengths[wrong[0]] < 0:
                raise UserError(f"{where}: column '{VECTOR}' is null; leave the row out")
            raise UserError(self._wrong_width(where, int(lengths[wrong[0]])))
        numbers = column.flatten().cast(pa.float32(), safe=False)
        values: Floats = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False)
        vectors = values.reshape(-1, self._width)
        finite = np.isfinite(vectors)
        if not finite.all():
            row, col = np.argwhere(~finite)[0].tolist()
            raise UserError(
                f"{file}: row {first + row}: number {col} of column '{VECTOR}' is "
                f"{vectors[row, col]:g}, but finite numbers are needed"
            )
        return vectors


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(each for each in path.glob("*.parquet") if not each.name.startswith("_"))
        if files:
            return files
        raise UserError(f"{path}: no Parquet file is in this directory; name a file or another")
    if not path.exists():
        raise UserError(f"{path}: no such file or directory of Parquet files")
    return [path]


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a Parquet file ({reason}); name another") from error


def _may_hold(group: pq.RowGroupMetaData, key: str, low: int, high: int) -> bool:
    """Whether a row group can hold a key in low..high-1, or a null."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == key:
            facts = column.statistics
            if facts is None or not facts.has_min_max or facts.null_count:
                return True
            return bool(facts.min < high and facts.max >= low)
    return True
