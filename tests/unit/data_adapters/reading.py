"""What an adapter wrote, as one table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The rows of every part, in order."""
    parts = [pq.read_table(part, columns=columns) for part in sorted(path.glob("part-*.parquet"))]
    return pa.concat_tables(parts)
