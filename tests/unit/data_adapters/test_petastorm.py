"""What is done about petastorm data sets on our side of its environment."""

from __future__ import annotations

import ast
import os
import pickle
import re
import signal
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.jobs import from_petastorm
from prismrec.jobs.from_petastorm import (
    PINS,
    ImportOptions,
    checked,
    has_pickled_schema,
    import_petastorm,
    schema_of,
)
from tests.helpers.source_tree import ROOT

TABLE = pa.table({"id": [1, 2], "grid": [[1.0, 2.0], [3.0, 4.0]]})


def test_the_pins_are_those_of_the_requirements() -> None:
    lines = (ROOT / "requirements/petastorm.txt").read_text().splitlines()
    assert list(PINS) == [line for line in lines if line and not line.startswith("#")]


def test_the_program_that_is_sent_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "jobs/petastorm_export.py").read_text())
    names = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    allowed = {
        "__future__",
        "decimal",
        "json",
        "os",
        "sys",
        "typing",
        "numpy",
        "pyarrow",
        "petastorm",
    }
    assert {str(name).split(".")[0] for name in names} <= allowed


def test_a_pickled_schema_is_seen_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    pq.write_table(TABLE, tmp_path / "a.parquet")
    assert not has_pickled_schema(tmp_path.as_uri())
    marked = TABLE.schema.with_metadata(
        {b"dataset-toolkit.unischema.v1": b"cos\nsystem\n(S'false'\ntR."}
    )
    pq.write_metadata(marked, tmp_path / "_common_metadata")
    assert has_pickled_schema(tmp_path.as_uri())
    with pytest.raises(
        UserError, match=r"its schema is a Python pickle.*say --trust if you would run"
    ):
        import_petastorm(str(tmp_path), tmp_path / "out", ImportOptions(), print)
    assert not (tmp_path / "out").exists()


def test_what_takes_minutes_is_told_first_and_sigterm_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def export(*_: object, **__: object) -> NoReturn:
        assert len(told) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM ended nothing")

    monkeypatch.setattr(from_petastorm, "_export", export)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # unless the import takes it
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(TABLE, data / "a.parquet")
    try:
        with pytest.raises(SystemExit) as left:
            import_petastorm(str(data), tmp_path / "out", ImportOptions(), told.append)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 128 + signal.SIGTERM
    assert re.match(r"setting up petastorm's own environment \(pip; minutes", told[0])
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no \*.parquet file in it or below"),
        (("a.parquet",), r"a.parquet: not a Parquet file"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for name in files:
        (tmp_path / name).write_text("words")
    with pytest.raises(UserError, match=message):
        has_pickled_schema(tmp_path.as_uri())
    with pytest.raises(UserError, match=r"no such directory"):
        has_pickled_schema((tmp_path / "none").as_uri())


def test_parts_are_checked(tmp_path: Path) -> None:
    facts = {"grid": {"shape": [2, 1]}, "id": {"shape": []}}
    pq.write_table(TABLE, tmp_path / "0.parquet")
    assert checked(tmp_path, 2, facts).names == ["id", "grid"]
    with pytest.raises(UserError, match=r"petastorm read 3 rows and wrote 2"):
        checked(tmp_path, 3, facts)
    with pytest.raises(
        UserError, match=r"'grid': its field has shape \(3,\), but arrays of \[2\] values"
    ):
        checked(tmp_path, 2, {"grid": {"shape": [3]}})
    pq.write_table(TABLE.set_column(0, "id", pa.array(["x", "y"])), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"a column changes its type within the data set: .*id"):
        checked(tmp_path, 4, {})


def test_a_schema_that_names_what_is_not_there() -> None:
    given = DataSchema(name="x", columns={"idd": Column(kind="id")})
    with pytest.raises(
        UserError, match=re.escape("column 'idd' is not in the data set; did you mean 'id'")
    ):
        schema_of(TABLE.schema, given, {}, "u")
    with pytest.raises(
        UserError, match=r"'idd' is not in the data set; is left out: it is a picture"
    ):
        schema_of(TABLE.schema, given, {"idd": {"left_out": "a picture"}}, "u")
    plain = schema_of(TABLE.schema, None, {"grid": {"shape": [2, 1]}}, "u").columns
    assert plain == {
        "id": Column(kind="id"),
        "grid": Column(kind="numbers", description="of shape (2, 1), row by row"),
    }
