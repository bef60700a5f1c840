import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import open_data
from tests.unit.data import small


def test_files_row_groups_and_rows(tmp_path: Path) -> None:
    source = open_data(small.write(tmp_path, [10, 7], group_rows=4))
    assert [file.name for file in source.files] == ["part-0.parquet", "part-1.parquet"]
    assert source.group_file.tolist() == [0, 0, 0, 1, 1]
    assert source.group_index.tolist() == [0, 1, 2, 0, 1]
    assert source.group_rows.tolist() == [4, 4, 2, 4, 3]
    assert source.num_rows == 17
    span = source.files[1].spans["at"][0]
    assert (span.low, span.high, span.nulls) == (100, 130, 0)


def test_hidden_files_and_directories_are_skipped(tmp_path: Path) -> None:
    small.write(tmp_path, [5])
    (tmp_path / "_tmp").mkdir()
    (tmp_path / ".part-9.parquet").write_text("")
    (tmp_path / "_tmp" / "part-9.parquet").write_text("")
    assert len(open_data(tmp_path).files) == 1


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    first = open_data(small.write(tmp_path / "a", [10, 7])).fingerprint
    assert open_data(small.write(tmp_path / "b", [10, 7])).fingerprint == first
    assert open_data(small.write(tmp_path / "c", [10, 8])).fingerprint != first
    more = Column(kind="other", description="x")
    DataSchema(name="small", columns={**small.COLUMNS, "key": more}).write(tmp_path / "b")
    assert open_data(tmp_path / "b").fingerprint != first


def test_directories_give_columns(tmp_path: Path) -> None:
    for day, region in ((3, "eu"), (12, "na")):
        directory = tmp_path / f"day={day}" / f"region={region}"
        directory.mkdir(parents=True)
        pq.write_table(small.table(day * 10, 10), directory / "part.parquet")
    columns = {"day": Column(kind="time"), "region": Column(kind="other")}
    DataSchema(name="small", columns={**small.COLUMNS, **columns}).write(tmp_path)
    source = open_data(tmp_path)
    assert [file.constants for file in source.files] == [
        {"day": 12, "region": "na"},
        {"day": 3, "region": "eu"},
    ]
    assert source.partition_types == {"day": pa.int64(), "region": pa.string()}
    shuffled = small.keys_by_step(tmp_path, lanes=2, splits={"train": ["day <= 3"]})
    assert sorted(small.flat(shuffled)) == list(range(30, 40))
    text = small.keys_by_step(tmp_path, lanes=2, splits={"train": ["region == 'na'"]})
    assert sorted(small.flat(text)) == list(range(120, 130))


def test_an_fsspec_url_reads_like_a_directory(tmp_path: Path) -> None:
    local = small.write(tmp_path, [30])
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/prismrec-small", recursive=True)
    try:
        url = "memory://prismrec-small"
        assert open_data(url).fingerprint == open_data(local).fingerprint
        assert small.keys_by_step(url) == small.keys_by_step(local)  # type: ignore[arg-type]
    finally:
        memory.rm("/prismrec-small", recursive=True)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such: no such directory"):
        open_data(tmp_path / "no-such")
    with pytest.raises(UserError, match=r"no \*\.parquet file"):
        open_data(tmp_path)
    pq.write_table(small.table(0, 3), tmp_path / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0\.parquet: a file; data\.path names the directory"):
        open_data(tmp_path / "part-0.parquet")
    with pytest.raises(UserError, match=r"no schema\.json beside the Parquet files"):
        open_data(tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(UserError, match=r"schema\.json: not a data schema: columns"):
        open_data(tmp_path)
    with pytest.raises(UserError, match="'nowhere://x' is on no file system that can be read"):
        open_data("nowhere://x")


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    small.write(tmp_path, [5])
    (tmp_path / "part-1.parquet").write_text("hello, this is no Parquet")
    with pytest.raises(UserError, match=r"part-1\.parquet: not a Parquet file"):
        open_data(tmp_path)


def test_columns_must_fit_the_schema_in_every_file(tmp_path: Path) -> None:
    small.write(tmp_path, [5])
    pq.write_table(small.table(5, 5).drop_columns("price"), tmp_path / "part-1.parquet")
    with pytest.raises(UserError, match=r"part-1\.parquet: column 'price' is missing"):
        open_data(tmp_path)
    text = small.table(5, 5).set_column(1, "item", pa.array(list("abcde")))
    pq.write_table(text, tmp_path / "part-1.parquet")
    with pytest.raises(UserError, match="column 'item' has type string, which is not of kind 'id'"):
        open_data(tmp_path)


def test_no_row_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 Parquet files hold 0 rows"):
        open_data(small.write(tmp_path, [0]))
