"""Tables of a checkpoint out to Parquet, and vectors of a file into a copy of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.checkpoint import CheckpointReader, exchange, read_table, verify
from prismrec.checkpoint.exchange import Written, export_tables
from prismrec.checkpoint.importing import import_vectors
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import UserError
from prismrec.data.encode.ids import mix64
from prismrec.data.vectors import FACTS
from tests.unit.checkpoint.forms import FORMS, empty_like, fill, logical, save
from tests.unit.checkpoint.stored import STEP, Stored


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("stored"))


def _export(
    stored: Stored, out: Path, table: str | None, since: int | None = None
) -> list[Written]:
    with CheckpointTables(stored.path) as tables:
        return export_tables(tables, tables.chosen(table, None), out, lambda *_: None, since)


def _vectors(directory: Path) -> tuple[pa.Table, np.ndarray]:
    table = pq.read_table(directory)
    vectors = table["vector"].combine_chunks()
    return table, vectors.flatten().to_numpy().reshape(len(table), vectors.type.list_size)


def test_direct_tables_are_written_by_id(stored: Stored, tmp_path: Path) -> None:
    written = _export(stored, tmp_path / "out", "user")
    assert [(each.set_name, each.rows, each.of) for each in written] == [
        ("narrow", 3001, 3001),
        ("wide", 3001, 3001),
    ]
    for name in ("wide", "narrow"):
        table, vectors = _vectors(tmp_path / "out" / "user" / name)
        assert table.column_names == ["id", "row", "vector"]
        assert table["id"].to_pylist() == [*range(3000), None]
        assert table["row"].to_pylist() == list(range(3001))
        assert np.array_equal(vectors, stored.weights[f"user/{name}"].numpy())
    (file,) = (tmp_path / "out" / "user" / "wide").iterdir()
    facts = json.loads(pq.read_metadata(file).metadata[FACTS])
    assert facts == {"table": "user", "set": "wide", "ids": "direct", "step": STEP, "since": None}


def test_hashed_tables_are_written_by_row(stored: Stored, tmp_path: Path) -> None:
    _export(stored, tmp_path / "out", "item")
    table, vectors = _vectors(tmp_path / "out" / "item" / "wide")
    assert table.column_names == ["row", "vector"]
    assert np.array_equal(vectors, stored.weights["item/wide"].numpy())
    with CheckpointTables(stored.path) as tables:
        rows, _ = tables.ids.encoder("item")(np.array([77]))
    assert rows.tolist() == [int(mix64(np.array([77], np.uint64), 5)[0] % np.uint64(9))]


def test_sums_of_rows_are_written_for_every_id(stored: Stored, tmp_path: Path) -> None:
    _export(stored, tmp_path / "out", "tags")
    table, vectors = _vectors(tmp_path / "out" / "tags" / "wide")
    assert table.column_names == ["id", "vector"]
    assert table["id"].to_pylist() == [*range(12), None]
    weight = stored.weights["tags/wide"].numpy()  # 3 quotients, 4 remainders, 1 unknown
    expected = [weight[i // 4] + weight[3 + i % 4] for i in range(12)] + [weight[7] + weight[7]]
    assert np.array_equal(vectors, np.stack(expected))


@pytest.mark.parametrize("since", [0, 17, STEP])
def test_a_delta_has_the_rows_touched_after_a_step(
    stored: Stored, tmp_path: Path, since: int
) -> None:
    _export(stored, tmp_path / "out", None, since)
    for key, touched in stored.touched.items():
        table, vectors = _vectors(tmp_path / "out" / key)
        if key.startswith("tags"):
            pairs = [(i // 4, 3 + i % 4) for i in range(12)] + [(7, 7)]
            ids = [i for i, (q, r) in enumerate(pairs) if max(touched[q], touched[r]) > since]
            assert table["id"].to_pylist() == [None if i == 12 else i for i in ids]
            continue
        rows = (touched > since).nonzero().squeeze(1)
        assert table["row"].to_pylist() == rows.tolist()
        assert np.array_equal(vectors, stored.weights[key][rows].numpy())


def test_blocks_meet_without_a_gap(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_BLOCK_BYTES", 1)
    told = []
    with CheckpointTables(stored.path) as tables:
        chosen = tables.chosen("user", "wide")
        export_tables(tables, chosen, tmp_path / "out", lambda *done: told.append(done), 17)
    _, vectors = _vectors(tmp_path / "out" / "user" / "wide")
    rows = (stored.touched["user/wide"] > 17).nonzero().squeeze(1)
    assert np.array_equal(vectors, stored.weights["user/wide"][rows].numpy())
    assert told == [(1024, 3001), (2048, 3001), (3001, 3001)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gathered_rows_are_those_of_any_form(tmp_path: Path, form: object) -> None:
    whole = logical()
    path = save(tmp_path, fill(empty_like(form), whole))  # type: ignore[arg-type]
    rows = torch.tensor([10, 0, 4, 4, 3])
    with CheckpointReader(path) as reader:
        entry = reader.manifest.tables["user/wide"].tensors["sum"]
        found = reader.gather(entry, rows, 2, 5)
    assert torch.equal(found, whole["user/wide"]["sum"][rows, 2:7])


def test_names_that_are_not_there(stored: Stored, tmp_path: Path) -> None:
    with CheckpointTables(stored.path) as tables:
        with pytest.raises(UserError, match="--table: .* no table 'usr'; did you mean 'user'"):
            tables.chosen("usr", None)
        with pytest.raises(UserError, match="--set: .* no set 'wild'; did you mean 'wide'"):
            tables.chosen("user", "wild")
    path = save(tmp_path, fill(empty_like(FORMS[0]), logical()))
    with pytest.raises(UserError, match="no run wrote this checkpoint"):
        CheckpointTables(path)


def test_facts_of_the_tables(stored: Stored) -> None:
    with CheckpointTables(stored.path) as tables:
        facts = {(each.table, each.set_name): each for each in tables.facts()}
    user = facts["user", "wide"]
    assert (user.rows, user.width, user.data_type, user.ids) == (3001, 8, "fp32", "direct")
    assert (user.weight_bytes, user.is_tracked) == (3001 * 8 * 4, True)
    # element-wise accumulators, and where columns were cut a number for each of the two parts
    assert user.state_bytes == 3001 * 8 * 4 + 3001 * 4 * 2
    assert facts["item", "narrow"].ids == "hash"
    assert facts["tags", "narrow"].rows == 3 + 4 + 1


def _file(path: Path, ids: list[int | None], vectors: np.ndarray) -> Path:
    table = {"id": pa.array(ids, pa.int64()), "vector": [row.tolist() for row in vectors]}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("data_type", [torch.float32, torch.float16])
def test_an_import_changes_the_rows_of_the_file_only(
    tmp_path: Path, data_type: torch.dtype
) -> None:
    stored = Stored(tmp_path, data_type=data_type)
    vectors = np.arange(32, dtype=np.float32).reshape(4, 8) / 8
    file = _file(tmp_path / "v.parquet", [2999, 5, 4000, None], vectors)
    before = {path.name: path.read_bytes() for path in stored.path.iterdir()}
    with CheckpointTables(stored.path) as tables:
        found = import_vectors(tables, "user", "wide", file, tmp_path / "new")
    assert (found.rows, found.of, found.vectors) == (3, 3001, 4)
    assert {path.name: path.read_bytes() for path in stored.path.iterdir()} == before
    verify(tmp_path / "new")
    expected = stored.weights["user/wide"].clone()
    expected[[2999, 5, 3000]] = torch.from_numpy(vectors[[0, 1, 3]]).to(data_type)
    assert torch.equal(read_table(tmp_path / "new", "user", "wide"), expected)
    for key in stored.weights.keys() - {"user/wide"}:
        assert torch.equal(read_table(tmp_path / "new", *key.split("/")), stored.weights[key])
    touched = stored.touched["user/wide"].clone()
    touched[[2999, 5, 3000]] = STEP
    with CheckpointTables(tmp_path / "new") as tables:
        assert torch.equal(tables.touched("user", "wide", torch.arange(3001)), touched)
        state = tables.reader.table("user", "wide", "accumulator")
        assert torch.equal(state, stored.weights["user/wide"].float().abs())


def test_a_delta_makes_the_older_checkpoint_the_newer(stored: Stored, tmp_path: Path) -> None:
    _export(stored, tmp_path / "out", "user", since=17)
    older = Stored(tmp_path / "older", before=17)
    assert not torch.equal(older.weights["user/wide"], stored.weights["user/wide"])
    with CheckpointTables(older.path) as tables:
        import_vectors(tables, "user", "wide", tmp_path / "out/user/wide", tmp_path / "new")
    assert torch.equal(read_table(tmp_path / "new", "user", "wide"), stored.weights["user/wide"])


def test_a_refused_import_leaves_nothing(stored: Stored, tmp_path: Path) -> None:
    good = np.ones((2, 8), np.float32)
    file = tmp_path / "v.parquet"
    with CheckpointTables(stored.path) as tables:
        with pytest.raises(UserError, match=r"row 1: column 'id': id 5 stands .* a second time"):
            import_vectors(tables, "user", "wide", _file(file, [5, 5], good), tmp_path / "new")
        with pytest.raises(
            UserError, match="holds vectors of 8 numbers, but set 'narrow' is 4 wide"
        ):
            import_vectors(tables, "user", "narrow", _file(file, [1, 5], good), tmp_path / "new")
        with pytest.raises(UserError, match="--table item: ids of kind 'hash' have no rows"):
            import_vectors(tables, "item", "wide", file, tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["v.parquet"]
        with pytest.raises(UserError, match="is there already"):
            import_vectors(tables, "user", "wide", file, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.parquet"]


def test_a_directory_that_is_in_use_is_not_written(stored: Stored, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        _export(stored, tmp_path, "user")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
