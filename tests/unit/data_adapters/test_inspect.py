from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.inspect import inspect_data
from prismrec.data.schema import Column, DataSchema
from prismrec.data.write import write_table

SCHEMA = DataSchema(
    name="toy",
    source="made up",
    columns={
        "y": Column(kind="label"),
        "u": Column(kind="id", num_ids=5),
        "b": Column(kind="ids", num_ids=4),
        "x": Column(kind="number"),
        "w": Column(kind="numbers"),
        "t": Column(kind="time"),
        "note": Column(kind="other"),
    },
)
ROWS = pa.table(
    {
        "y": [1, 0, None, 0, 0],
        "u": [4, None, 0, 4, 9],
        "b": [[0, 3], [], None, [-1], [3, 3, 3, 3]],
        "x": [1.0, 2.0, None, float("nan"), 3.0],
        "w": pa.array([[1.0], [], None, [3.0], []], pa.list_(pa.float32())),
        "t": [5, 6, 7, 8, 9],
        "note": ["a", None, "", "b", "c"],
    }
)


def test_ids_of_any_value_have_ends_and_no_count(tmp_path: Path) -> None:
    columns = {**SCHEMA.columns, "u": Column(kind="id"), "b": Column(kind="ids")}
    write_table(tmp_path / "out", ROWS, SCHEMA.model_copy(update={"columns": columns}))
    found = inspect_data(tmp_path / "out")["columns"]
    assert found["u"] == {"type": "int64", "kind": "id", "nulls": 1, "min": 0, "max": 9}
    assert (found["b"]["min"], found["b"]["max"], found["b"]["lengths"]["1"]) == (-1, 3, 4)


def test_facts_by_hand(tmp_path: Path) -> None:
    write_table(tmp_path / "out", ROWS, SCHEMA, rows_per_group=2, rows_per_file=4)
    seen: list[tuple[int, int]] = []
    facts = inspect_data(tmp_path / "out", 2, 4, lambda done, total: seen.append((done, total)))
    assert json.loads(json.dumps(facts)) == facts
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (facts["files"], facts["rows"], facts["row_groups"]) == (2, 5, 3)
    assert facts["rows_per_group"] == [1, 2]
    assert facts["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.parquet"))
    assert facts["lanes"] == {
        "lanes": 4,
        "rows_per_lane": [1, 2],
        "world_size": 2,
        "lanes_per_rank": 2,
        "rows_per_rank": [3, 2],
    }
    columns = facts["columns"]
    assert columns["y"] == {"type": "int8", "kind": "label", "nulls": 1, "rate": 0.25}
    ids = {"num_ids": 5, "distinct": 2, "unknown": 1, "min": 0, "max": 9}
    assert columns["u"] == {"type": "int64", "kind": "id", "nulls": 1, **ids}
    assert columns["b"]["distinct"] == 2
    assert columns["b"]["unknown"] == 1
    lengths = columns["b"]["lengths"]
    assert lengths == {
        "0": 0,
        "0.25": 0,
        "0.5": 1,
        "0.75": 2,
        "0.9": 4,
        "0.99": 4,
        "1": 4,
        "mean": 1.4,
        "empty_share": 0.4,
    }
    number = columns["x"]
    assert (number["min"], number["max"], number["nulls"]) == (1.0, 3.0, 1)
    assert (number["mean"], number["std"]) == pytest.approx((2.0, np.sqrt(2 / 3)))
    assert columns["w"]["mean"] == 2.0
    assert (columns["t"]["min"], columns["t"]["max"]) == (5, 9)
    assert columns["note"] == {"type": "string", "kind": "other", "nulls": 1}
    assert "world_size" not in inspect_data(tmp_path / "out")["lanes"]


def test_an_all_null_label_has_no_rate(tmp_path: Path) -> None:
    schema = DataSchema(name="toy", columns={"y": Column(kind="label")})
    write_table(tmp_path / "out", pa.table({"y": pa.nulls(3, pa.int8())}), schema)
    assert inspect_data(tmp_path / "out")["columns"]["y"]["rate"] is None


def test_spread_of_large_numbers_over_row_groups(tmp_path: Path) -> None:
    values = 1e6 + np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    schema = DataSchema(name="toy", columns={"x": Column(kind="number")})
    write_table(tmp_path / "out", pa.table({"x": values}), schema, rows_per_group=700)
    facts = inspect_data(tmp_path / "out")["columns"]["x"]
    stored = values.astype(np.float32).astype(np.float64)
    assert facts["mean"] == pytest.approx(stored.mean(), rel=1e-12)
    assert facts["std"] == pytest.approx(stored.std(), rel=1e-9)


def test_lanes_that_do_not_divide_and_corrupt_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 lanes cannot be shared out to 3 ranks; 9 lanes work"):
        inspect_data(tmp_path / "out", world_size=3)
    with pytest.raises(UserError, match="both must be at least 1"):
        inspect_data(tmp_path / "out", world_size=0)
    write_table(tmp_path / "out", ROWS, SCHEMA, rows_per_group=2)
    part = tmp_path / "out" / "part-00000.parquet"
    at = pq.read_metadata(part).row_group(1).column(0).data_page_offset
    data = bytearray(part.read_bytes())
    data[at : at + 12] = b"\xff" * 12
    part.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"part-00000.parquet: row group 1: cannot be decoded"):
        inspect_data(tmp_path / "out")
