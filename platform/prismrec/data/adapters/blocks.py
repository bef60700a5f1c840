"""Delimited text in blocks: two passes over files that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from prismrec.data.adapters.source import unreadable
from prismrec.data.write import Progress

BLOCK_BYTES = 2**24


class TextBlocks:
    """The rows of several files with the same columns, a block at a time.

    Args:
        paths: the files, in order; `.gz` is unpacked on the way.
        parse: how fields are parted.
        convert: the columns wanted and their types.
        names: names of the columns where the files have no header.
        progress: told how many of the bytes are read, over both passes.

    Attributes:
        path: the file that the last block came from.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        parse: csv.ParseOptions,
        convert: csv.ConvertOptions,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._paths, self._parse, self._convert = paths, parse, convert
        self._read = csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES)
        self._progress = progress
        self._bytes_total = 2 * sum(path.stat().st_size for path in paths)
        self._bytes_before = 0
        self.path = paths[0]

    def __iter__(self) -> Iterator[pa.Table]:
        """One pass over all rows.

        Raises:
            UserError: a file cannot be parsed.
        """
        for path in self._paths:
            self.path = path
            try:
                yield from self._blocks_of(path)
            except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
                raise unreadable(path, error) from None
            self._bytes_before += path.stat().st_size

    def _blocks_of(self, path: Path) -> Iterator[pa.Table]:
        with pa.OSFile(str(path)) as raw:
            stream = pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else raw
            reader = csv.open_csv(
                stream,
                read_options=self._read,
                parse_options=self._parse,
                convert_options=self._convert,
            )
            for batch in reader:
                if self._progress is not None:
                    self._progress(self._bytes_before + raw.tell(), self._bytes_total)
                yield pa.Table.from_batches([batch])
