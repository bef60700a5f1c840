from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data import filters
from prismrec.data.arrivals import Arrivals, Arrived
from prismrec.data.schema import Column, DataSchema

SCHEMA = DataSchema(
    name="stream", columns={"at": Column(kind="time"), "user": Column(kind="id", num_ids=9)}
)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    SCHEMA.write(tmp_path)
    return tmp_path


def write(path: Path, times: list[int | None], *, statistics: bool = True) -> int:
    path.parent.mkdir(exist_ok=True)
    table = pa.table(
        {"at": pa.array(times, pa.int64()), "user": pa.array([1] * len(times), pa.int64())}
    )
    pq.write_table(table, path, row_group_size=2, write_statistics=statistics)
    return path.stat().st_size


@pytest.mark.parametrize("statistics", [True, False])
def test_whole_files_come_in_order_of_time_and_once(stream: Path, statistics: bool) -> None:
    sizes = {
        "b": write(stream / "b.parquet", [7, 5, 9], statistics=statistics),
        "a": write(stream / "day=1" / "a.parquet", [10, 12], statistics=statistics),
    }
    arrivals = Arrivals(str(stream), "at")
    found = arrivals.look({})
    assert found == [
        Arrived("b.parquet", sizes["b"], 5, 9),
        Arrived("day=1/a.parquet", sizes["a"], 10, 12),
    ]
    known = {each.name: each.size for each in found}
    assert arrivals.look(known) == []
    source = arrivals.source({"b.parquet": sizes["b"]})
    assert [file.name for file in source.files] == ["b.parquet"]
    assert source.num_rows == 3


def test_a_file_is_taken_only_when_it_is_whole(stream: Path) -> None:
    arrivals = Arrivals(str(stream), "at")
    whole = stream / "_writing" / "x.parquet"
    write(whole, [1, 2, 3])
    write(stream / ".x.parquet.tmp", [1])
    data, target = whole.read_bytes(), stream / "x.parquet"
    for size in (0, 4, len(data) // 2, len(data) - 1):
        target.write_bytes(data[:size])
        assert arrivals.look({}) == []
        assert arrivals.unfinished == ("x.parquet",)
    target.write_bytes(data)
    assert arrivals.look({}) == [Arrived("x.parquet", len(data), 1, 3)]
    assert arrivals.unfinished == ()


def test_a_file_without_rows_is_passed_over(stream: Path) -> None:
    write(stream / "empty.parquet", [])
    arrivals = Arrivals(str(stream), "at")
    assert arrivals.look({}) == arrivals.look({}) == []
    assert arrivals.unfinished == ()


def test_a_file_that_changes_ends_the_run(stream: Path) -> None:
    size = write(stream / "a.parquet", [1])
    arrivals = Arrivals(str(stream), "at")
    write(stream / "a.parquet", [1, 2, 3, 4])
    with pytest.raises(UserError, match=rf"a\.parquet: had {size} bytes when it was taken and has"):
        arrivals.look({"a.parquet": size})


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_a_time_end_the_run(stream: Path, statistics: bool) -> None:
    write(stream / "a.parquet", [1, 2, None, 4], statistics=statistics)
    match = r"a\.parquet: row group 1: column 'at' has no time in 1 rows"
    with pytest.raises(UserError, match=match):
        Arrivals(str(stream), "at").look({})


def test_what_a_stream_needs(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'user' of 'stream' is of kind 'id', but 'time' is needed"):
        Arrivals(str(stream), "user")
    with pytest.raises(UserError, match=r"no schema\.json"):
        Arrivals(str(tmp_path / "nowhere"), "at")
    pq.write_table(pa.table({"at": [1]}), stream / "a.parquet")
    with pytest.raises(UserError, match="user"):
        Arrivals(str(stream), "at").look({})


def test_counts_of_a_slice_leave_no_file(
    stream: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are remembered as long as the slice is: it is counted for three readers."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    source = Arrivals(str(stream), "at").source(
        {"a.parquet": write(stream / "a.parquet", [1, 2, 3])}
    )
    rows = filters.row_filter(("at >= 2",), source, "split")
    assert filters.count_rows(source, rows).tolist() == [1, 1]
    monkeypatch.setattr(filters, "count_matching", None)
    assert filters.count_rows(source, rows).tolist() == [1, 1]
    assert list(cache.iterdir()) == []
