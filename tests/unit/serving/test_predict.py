"""Parquet in, Parquet of probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.config import UserError
from prismrec.serving.inference import InferenceModel
from prismrec.serving.predict import predict_parquet
from tests.unit.serving.world import make_world, random_raw


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    return make_world().model(tmp_path_factory.mktemp("bundle"))


def table(rows: int, seed: int, **more: Any) -> pa.Table:
    raw = random_raw(rows, seed)
    return pa.table(
        {**raw, "request_id": [f"r{i}" for i in range(rows)], "note": [1] * rows, **more}
    )


def write(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=7)


def test_files_rows_and_keys_stay_as_they_are(model: InferenceModel, tmp_path: Path) -> None:
    tables = {"day=2/b.parquet": table(20, 1), "day=1/a.parquet": table(33, 2)}
    for name, content in tables.items():
        write(tmp_path / "data" / name, content)
    (tmp_path / "data" / "schema.json").write_text("{}")
    write(tmp_path / "data" / "_old" / "c.parquet", table(5, 3))
    told: list[tuple[int, int]] = []
    rows = predict_parquet(
        model,
        str(tmp_path / "data"),
        tmp_path / "out",
        batch_rows=8,
        progress=lambda done, total: told.append((done, total)),
    )
    assert rows == 53
    assert told[-1] == (53, 53)
    assert len(told) >= 53 / 8
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.*"))
    assert found == sorted(tables)
    for name, content in tables.items():
        out = pq.ParquetFile(tmp_path / "out" / name).read()
        assert out.column_names == ["user_id", "request_id", "click", "buy"]
        assert out["request_id"].equals(content["request_id"])
        expected = model.probabilities({n: content[n] for n in model.columns})
        got = torch.tensor([out["click"].to_pylist(), out["buy"].to_pylist()]).T
        assert torch.allclose(got, expected, atol=1e-7)


def test_columns_of_directories_can_be_features_and_keys(
    model: InferenceModel, tmp_path: Path
) -> None:
    content = table(6, 1)
    write(tmp_path / "data" / "item=3" / "x.parquet", content.drop_columns(["item"]))
    write(tmp_path / "data" / "item=5" / "x.parquet", content.drop_columns(["item"]))
    predict_parquet(model, str(tmp_path / "data"), tmp_path / "out", keys=["item"])
    for item in (3, 5):
        out = pq.ParquetFile(tmp_path / "out" / f"item={item}" / "x.parquet").read()
        assert out["item"].to_pylist() == [item] * 6
        raw = {n: content[n] for n in model.columns if n != "item"}
        expected = model.probabilities({**raw, "item": [item] * 6})
        assert torch.allclose(torch.tensor(out["click"].to_pylist()), expected[:, 0], atol=1e-7)


def test_errors_name_the_place_and_leave_nothing(model: InferenceModel, tmp_path: Path) -> None:
    def fails(match: str, **arguments: Any) -> None:
        with pytest.raises(UserError, match=match):
            predict_parquet(model, str(tmp_path / "data"), tmp_path / "out", **arguments)
        assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == []

    fails(r"data: no such directory; correct the path")
    (tmp_path / "data").mkdir()
    fails(r"data: holds no .parquet file")
    write(tmp_path / "data" / "a.parquet", table(9, 1).drop_columns(["item"]))
    fails(r"data: column 'item' is missing")
    write(tmp_path / "data" / "a.parquet", table(9, 1))
    fails(r"no key column 'usr_id'; did you mean 'user_id'", keys=["usr_id"])
    bad = table(9, 1).drop_columns(["item"]).append_column("item", pa.array(["x"] * 9))
    write(tmp_path / "data" / "a.parquet", bad)
    fails(r"a.parquet: column 'item' needs integers, but the request has: string")
    write(tmp_path / "data" / "a.parquet", table(9, 1, click=[0] * 9))
    fails(r"the key column 'click' has the name of a task", keys=["click"])
    content = bytearray((tmp_path / "data" / "a.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (tmp_path / "data" / "b.parquet").write_bytes(content)
    fails(r"b.parquet: cannot be decoded .*write the file again")
    (tmp_path / "data" / "a.parquet").write_bytes(b"not parquet")
    fails(r"data: not readable as Parquet")


def test_results_are_not_overwritten(model: InferenceModel, tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", table(3, 1))
    (tmp_path / "out").mkdir()
    assert predict_parquet(model, str(tmp_path / "data"), tmp_path / "out") == 3
    with pytest.raises(UserError, match=r"out: already there and not empty"):
        predict_parquet(model, str(tmp_path / "data"), tmp_path / "out")


def test_an_fsspec_url_reads_like_a_directory(model: InferenceModel, tmp_path: Path) -> None:
    write(tmp_path / "data" / "day=1" / "a.parquet", table(20, 1))
    write(tmp_path / "data" / "day=2" / "b.parquet", table(9, 2))
    write(tmp_path / "data" / "_old" / "c.parquet", table(5, 3))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/prismrec-predict", recursive=True)
    try:
        rows = predict_parquet(model, "memory://prismrec-predict", tmp_path / "far")
        one = predict_parquet(
            model, "memory://prismrec-predict/day=2/b.parquet", tmp_path / "single"
        )
    finally:
        memory.rm("/prismrec-predict", recursive=True)
    assert (rows, one) == (29, 9)
    assert predict_parquet(model, str(tmp_path / "data"), tmp_path / "near") == 29
    assert not (tmp_path / "far" / "_old").exists()
    for name in ("day=1/a.parquet", "day=2/b.parquet"):
        near, far = (pq.ParquetFile(tmp_path / each / name).read() for each in ("near", "far"))
        assert far.equals(near)
    single = pq.ParquetFile(tmp_path / "single" / "b.parquet").read()
    assert single.equals(pq.ParquetFile(tmp_path / "near" / "day=2" / "b.parquet").read())
    with pytest.raises(UserError, match=r"'nowhere://x' is on no file system that can be read"):
        predict_parquet(model, "nowhere://x", tmp_path / "out")
