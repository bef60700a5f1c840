"""One small world for all tests that only look at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.data.world import write_world

ROWS, DAYS, SEED = 40_000, 5, 3


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 40,000 rows over 5 days."""
    out = tmp_path_factory.mktemp("world") / "small"
    write_world(out, ROWS, DAYS, SEED)
    return out


@pytest.fixture(scope="session")
def rows(world: Path) -> pa.Table:
    """All its rows, in the order of the files."""
    return pa.concat_tables(pq.read_table(part) for part in sorted(world.glob("part-*.parquet")))


@pytest.fixture(scope="session")
def truth(world: Path) -> dict[str, pa.Table]:
    """The planted parameters, by file."""
    return {path.stem: pq.read_table(path) for path in (world / "_truth").glob("*.parquet")}


@pytest.fixture(scope="session")
def history(rows: pa.Table) -> dict[str, np.ndarray]:
    """Offsets and flat values of the history columns."""
    columns = {
        name: rows[f"history_{name}"].combine_chunks() for name in ("items", "categories", "times")
    }
    flat = {name: column.flatten().to_numpy() for name, column in columns.items()}
    lengths = columns["items"].value_lengths().to_numpy()
    return {**flat, "offsets": np.concatenate([[0], np.cumsum(lengths)])}
