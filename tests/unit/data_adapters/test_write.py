from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import open_data
from prismrec.data.write import group_rows, staged, write_table

SCHEMA = DataSchema(
    name="toy",
    columns={
        "y": Column(kind="label"),
        "u": Column(kind="id", num_ids=10),
        "b": Column(kind="ids", num_ids=10),
        "x": Column(kind="number"),
        "w": Column(kind="numbers"),
        "t": Column(kind="time"),
        "note": Column(kind="other"),
    },
)


def rows(times: list[int]) -> pa.Table:
    count = len(times)
    return pa.table(
        {
            "note": [f"n{t}" for t in times],
            "t": pa.array(times, pa.int32()),
            "w": pa.array([[0.5]] * count, pa.list_(pa.float64())),
            "x": pa.array([None] + [1.5] * (count - 1), pa.float64()),
            "b": pa.array([[1, 2]] * count, pa.list_(pa.int32())),
            "u": pa.array([t % 10 for t in times], pa.int16()),
            "y": pa.array([True] * count),
        }
    )


def test_one_table_is_typed_ordered_and_sorted_by_time(tmp_path: Path) -> None:
    write_table(tmp_path / "out", rows([3, 1, 2]), SCHEMA)
    got = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert got.column_names == list(SCHEMA.columns)
    assert [str(kind) for kind in got.schema.types] == [
        "int8",
        "int64",
        "list<element: int64>",
        "float",
        "list<element: float>",
        "int64",
        "string",
    ]
    assert got["t"].to_pylist() == [1, 2, 3]
    assert got["note"].to_pylist() == ["n1", "n2", "n3"]
    assert got["x"].to_pylist() == [1.5, 1.5, None]
    assert open_data(str(tmp_path / "out")).schema == SCHEMA


def test_a_stream_is_cut_into_whole_row_groups_and_files_in_its_order(tmp_path: Path) -> None:
    tables = [rows(list(range(0, 5))), rows(list(range(5, 6))), rows(list(range(6, 23)))]
    write_table(tmp_path / "out", iter(tables), SCHEMA, rows_per_group=4, rows_per_file=8)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    sizes = [
        [
            pq.read_metadata(path).row_group(g).num_rows
            for g in range(pq.read_metadata(path).num_row_groups)
        ]
        for path in files
    ]
    assert sizes == [[4, 4], [4, 4], [4, 3]]
    times = [t for path in files for t in pq.read_table(path)["t"].to_pylist()]
    assert times == list(range(23))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_on_the_way_leaves_nothing_new_and_the_old_whole(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def breaks() -> Iterator[pa.Table]:
        yield rows([1, 2, 3])
        raise error

    with pytest.raises(error):
        write_table(tmp_path / "out", breaks(), SCHEMA, rows_per_group=1)
    assert list(tmp_path.iterdir()) == []
    write_table(tmp_path / "out", rows([7]), SCHEMA)
    with pytest.raises(error):
        write_table(tmp_path / "out", breaks(), SCHEMA, overwrite=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet")["t"].to_pylist() == [7]


def test_a_data_set_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_table(out, rows([1]), SCHEMA)
    with pytest.raises(UserError, match="a data set lies here already"):
        write_table(out, rows([2]), SCHEMA)
    write_table(out, rows([2]), SCHEMA, overwrite=True)
    assert pq.read_table(out / "part-00000.parquet")["t"].to_pylist() == [2]
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_data_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty and holds no data set"):
        write_table(tmp_path / "mine", rows([1]), SCHEMA, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write_table(tmp_path / "mine" / "thesis.txt", rows([1]), SCHEMA, overwrite=True)
    with (
        pytest.raises(UserError, match="cannot be written"),
        staged(tmp_path / "mine" / "thesis.txt" / "a"),
    ):
        pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column 'note' is in the schema, not in the rows"):
        write_table(tmp_path / "out", rows([1]).drop_columns("note"), SCHEMA)
    wrong = rows([1]).set_column(5, "u", pa.array(["Ann"]))
    with pytest.raises(UserError, match="column 'u' is of kind 'id' and cannot become int64"):
        write_table(tmp_path / "out", wrong, SCHEMA)
    with pytest.raises(UserError, match="not a single row to write"):
        write_table(tmp_path / "out", rows([1]).slice(1), SCHEMA)
    with pytest.raises(UserError, match="not a single row to write"):
        write_table(tmp_path / "out", iter([]), SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_row_groups_are_64_mib_or_a_sixteenth_of_small_data() -> None:
    wide = pa.table({f"c{i}": np.zeros(1000, np.int64) for i in range(128)})  # 1 KiB a row
    assert group_rows(wide, None) == 65_536
    assert group_rows(wide, 10**9) == 65_536
    assert group_rows(wide, 160_001) == 10_001
    assert group_rows(wide, 100) == 1024
    assert group_rows(wide, 10**7, 96 * 2**20) == 96 * 2**10
    assert group_rows(wide, 50_000, 96 * 2**20) == 3_125  # sixteen of them
