"""Data sets that are broken on purpose."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def damage(path: Path, row_group: int, column: str) -> None:
    """Overwrite the bytes of one column of a row group; the file keeps its size and its footer."""
    group = pq.ParquetFile(path).metadata.row_group(row_group)
    chunks = [group.column(index) for index in range(group.num_columns)]
    (chunk,) = (each for each in chunks if each.path_in_schema.split(".")[0] == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
