"""A directory into which files arrive: which of them are whole, and when their rows happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prismrec.config import UserError
from prismrec.data.source import (
    DataSource,
    NotParquetError,
    list_files,
    open_files,
    resolve_filesystem,
)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A whole file of a stream that has rows.

    Args:
        name: path under the stream's directory.
        size: bytes.
        low: earliest time of its rows.
        high: latest time of its rows.
    """

    name: str
    size: int
    low: int
    high: int


class Arrivals:
    """The files of a stream.

    A file is taken once it is whole: its name ends with `.parquet`, no part of its path begins with
    `.` or `_`, and it ends with the footer that closes every Parquet file. So a writer may write
    under another name and rename, or write in place.

    Args:
        path: a directory or URL, as for `open_data`; its `schema.json` is there already.
        time: the time column.

    Raises:
        UserError: there is no such directory or schema, or the column is not of kind `time`.
    """

    def __init__(self, path: str, time: str) -> None:
        self._path, self._time = path, time
        self.schema = self.source({}).schema
        """Meaning of the columns."""
        self.schema.column(time, ("time",), "features.time")
        self._filesystem, self._base = resolve_filesystem(path)
        self.unfinished: tuple[str, ...] = ()
        """Files of the last look that are not whole yet."""
        self._empty: dict[str, int] = {}

    def look(self, known: Mapping[str, int]) -> list[Arrived]:
        """Whole files that are not known yet, the earliest first.

        Args:
            known: bytes of every file taken before, by name.

        Raises:
            UserError: a known file is of another size now, a new one does not fit the schema, or
                has a row without a time.
        """
        found, unfinished = [], []
        for name, size in list_files(self._filesystem, self._base):
            before = known.get(name, size)
            if before != size:
                raise UserError(
                    f"{self._path}/{name}: had {before} bytes when it was taken and has {size} now; a "
                    "file of a stream stays as it is once it is whole: write changed rows to a new file"
                )
            if name in known or self._empty.get(name) == size:
                continue
            arrived = self._arrived(name, size)
            if arrived is None:
                unfinished.append(name)
            elif arrived.low <= arrived.high:
                found.append(arrived)
            else:
                self._empty[name] = size
        self.unfinished = tuple(unfinished)
        return sorted(found, key=lambda each: (each.low, each.high, each.name))

    def present(self, names: Iterable[str]) -> set[str]:
        """Those of some files that are still there."""
        return {name for name, _ in list_files(self._filesystem, self._base)} & set(names)

    def source(self, files: Mapping[str, int]) -> DataSource:
        """Some files of the stream as a data set.

        Args:
            files: bytes by name.

        Raises:
            UserError: one is gone or cannot be read.
        """
        source = open_files(self._path, sorted(files.items()))
        return replace(source, counts={})  # the same files are hardly ever met together again

    def _arrived(self, name: str, size: int) -> Arrived | None:
        """The file, None while it is being written; without rows `low` is above `high`."""
        try:
            source = self.source({name: size})
        except NotParquetError:
            return None
        if self._filesystem.get_file_info(f"{self._base}/{name}").size != size:
            return None
        bounds = [self._bounds(source, group) for group in range(len(source.group_rows))]
        spans = [each for each in bounds if each is not None]
        if not spans:
            return Arrived(name, size, 0, -1)
        return Arrived(name, size, min(low for low, _ in spans), max(high for _, high in spans))

    def _bounds(self, source: DataSource, group: int) -> tuple[int, int] | None:
        """Earliest and latest time of a row group, by its statistics or else by its rows."""
        if source.group_rows[group] == 0:
            return None
        spans = source.files[0].spans.get(self._time)
        span = spans[group] if spans else None
        nulls, low, high = (span.nulls, span.low, span.high) if span else (None, None, None)
        if nulls is None or low is None or high is None:
            times = self._times(source, group)
            nulls, bounds = times.null_count, pc.min_max(times).as_py()
            low, high = bounds["min"], bounds["max"]
        if nulls or low is None or high is None:
            raise UserError(
                f"{self._path}/{source.where(group)}: column '{self._time}' has no time in {nulls} "
                "rows, which belong to no window then; write the file again with all times"
            )
        return low, high

    def _times(self, source: DataSource, group: int) -> pa.ChunkedArray:
        column = source.files[0].constants.get(self._time)
        if column is not None:
            return pa.chunked_array([pa.array([column] * int(source.group_rows[group]))])
        with pq.ParquetFile(source.file_path(0), filesystem=source.filesystem) as file:
            return file.read_row_group(group, columns=[self._time]).column(self._time)
