"""Vectors in Parquet: what is written is read, by id, and what cannot be used is named by its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data import vectors as module
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.vectors import FACTS, VectorFiles, VectorWriter


def _write(
    path: Path, ids: list[int | None], vectors: list[list[float] | None], **types: object
) -> Path:
    kind = types.get("vector", pa.list_(pa.float32()))
    columns = {"id": pa.array(ids, types.get("id", pa.int64())), "vector": pa.array(vectors, kind)}
    pq.write_table(pa.table(columns), path)
    return path


def _read(path: Path, width: int = 2) -> list[tuple[list[int], list[list[float]]]]:
    blocks = VectorFiles(path, "id", width, "set 's'").blocks()
    return [(block.keys.tolist(), block.vectors.tolist()) for block in blocks]


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_BYTES", 1)  # then a group has the least rows: 1,024
    ids, rows = np.arange(2500) * 3, np.arange(2500)
    ids[7] = NULL_ID
    vectors = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32)
    writer = VectorWriter(tmp_path, 4, ("id", "row"), {"table": "user", "step": 3})
    for start in range(0, 2500, 700):
        part = slice(start, start + 700)
        writer.write({"id": ids[part], "row": rows[part]}, vectors[part])
    writer.close()
    assert writer.num_rows == 2500
    (file,) = tmp_path.glob("*.parquet")
    facts = pq.read_metadata(file)
    assert [facts.row_group(g).num_rows for g in range(facts.num_row_groups)] == [1024, 1024, 452]
    assert json.loads(facts.metadata[FACTS]) == {"table": "user", "step": 3}
    table = pq.read_table(file)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert table["id"].null_count == 1
    files = VectorFiles(tmp_path, "id", 4, "set 's'")
    blocks = list(files.blocks())
    assert files.num_rows == 2500
    assert np.array_equal(np.concatenate([b.keys for b in blocks]), ids)
    assert np.array_equal(np.concatenate([b.vectors for b in blocks]), vectors)
    assert np.array_equal(np.concatenate([b.rows for b in blocks if b.rows is not None]), rows)
    assert [block.first for block in blocks] == [0, 1024, 2048]


def test_row_groups_without_wanted_ids_are_left_out(tmp_path: Path) -> None:
    table = pa.table({"id": [0, 1, 5, 6, None, 9], "vector": [[float(i)] for i in range(6)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    files = VectorFiles(tmp_path / "a.parquet", "id", 1, "set 's'")
    found = [block.vectors[:, 0].tolist() for block in files.blocks(5, 6)]
    assert found == [[2, 3], [4, 5]]  # the last group holds a null, which may stand for any row
    assert next(files.blocks(0, 1)).place(1).endswith("a.parquet: row 1")


def test_an_empty_table_still_gives_a_file(tmp_path: Path) -> None:
    VectorWriter(tmp_path, 8, ("id",), {}).close()
    assert pq.read_table(tmp_path).num_rows == 0
    assert _read(tmp_path, 8) == []


@pytest.mark.parametrize(
    ("id_type", "vector_type"),
    [
        (pa.int32(), pa.list_(pa.float32(), 2)),
        (pa.uint64(), pa.large_list(pa.float64())),
        (pa.int8(), pa.list_(pa.float16())),
    ],
)
def test_types_that_hold_the_same_numbers(
    tmp_path: Path, id_type: pa.DataType, vector_type: pa.DataType
) -> None:
    vectors = [[np.float16(1.5), np.float16(-2)], [np.float16(0), np.float16(4)]]
    path = _write(tmp_path / "a.parquet", [3, 1], vectors, id=id_type, vector=vector_type)
    assert _read(path) == [([3, 1], [[1.5, -2.0], [0.0, 4.0]])]


def test_mistakes_are_named_by_file_column_and_row(tmp_path: Path) -> None:
    good = [1.0, 2.0]
    cases = [
        (
            [1, 2],
            [good, [1.0, float("nan")]],
            r"a.parquet: row 1: number 1 of column 'vector' is nan",
        ),
        ([1, 2], [good, [float("inf"), 1.0]], r"row 1: number 0 of column 'vector' is inf"),
        ([1, 2], [good, [1.0]], r"row 1: column 'vector' holds vectors of 1 .* set 's' is 2 wide"),
        ([1, 2], [good, None], r"row 1: column 'vector' is null"),
        ([1, 2], [good, [1.0, None]], r"row 1: number 1 of column 'vector' is nan"),
    ]
    for ids, vectors, message in cases:
        with pytest.raises(UserError, match=message):
            _read(_write(tmp_path / "a.parquet", ids, vectors))  # type: ignore[arg-type]
    large = _write(tmp_path / "b.parquet", [1, 2**63], [good, good], id=pa.uint64())
    with pytest.raises(UserError, match=r"b.parquet: row 1: column 'id' holds 9223372036854775808"):
        _read(large)


def test_files_without_such_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(UserError, match="no such file"):
        _read(path)
    with pytest.raises(UserError, match="no Parquet file is in this directory"):
        _read(tmp_path)
    path.write_text("id,vector")
    with pytest.raises(UserError, match="not a Parquet file"):
        _read(path)
    pq.write_table(pa.table({"ids": [1], "vector": [[1.0]]}), path)
    with pytest.raises(UserError, match="no column 'id'; did you mean 'ids'"):
        _read(path)
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}), path)
    with pytest.raises(UserError, match="column 'id' has type string, but integers"):
        _read(path)
    pq.write_table(pa.table({"id": [1], "vector": [[1]]}), path)
    with pytest.raises(
        UserError, match=r"column 'vector' has type list<.*int64>, but a list of float"
    ):
        _read(path)
    _write(path, [1], [[1.0, 2.0]], vector=pa.list_(pa.float32(), 2))
    with pytest.raises(UserError, match="holds vectors of 2 numbers, but set 's' is 4 wide"):
        VectorFiles(path, "id", 4, "set 's'")
