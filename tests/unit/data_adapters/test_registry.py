from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.data.adapters import ADAPTERS, find_adapter, prepare
from tests.unit.data_adapters.reading import read

MINE = """
import pyarrow as pa
from prismrec.data.schema import Column, DataSchema
from prismrec.data.write import write_parts

def prepare(source, out, options):
    schema = DataSchema(name="mine", columns={"y": Column(kind="label")})
    write_parts(out, pa.table({"y": [int(source.name), options.min_count]}), schema)
    return schema

def fails(source, out, options):
    prepare(source, out, options)
    raise RuntimeError("half way")

def forgets(source, out, options):
    pass
"""


@pytest.fixture
def my_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_team_adapters.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_team_adapters"


def test_an_adapter_outside_the_package(my_team: str, tmp_path: Path) -> None:
    schema = prepare(f"{my_team}:prepare", Path("0"), tmp_path / "out")
    assert schema.name == "mine"
    assert read(tmp_path / "out")["y"].to_pylist() == [0, 1]


def test_a_failing_adapter_leaves_nothing(my_team: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        prepare(f"{my_team}:fails", Path("0"), tmp_path / "deep" / "out")
    with pytest.raises(UserError, match=r"left no schema.json; end it with .*write_parts"):
        prepare(f"{my_team}:forgets", Path("0"), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_unknown_adapters_are_told_apart(my_team: str) -> None:
    assert set(ADAPTERS) == {"kuairand", "movielens", "frappe", "census", "criteo", "csv"}
    with pytest.raises(UserError, match="adapter 'kuairnd': unknown; did you mean 'kuairand'"):
        find_adapter("kuairnd")
    with pytest.raises(UserError, match=r"has no function 'nothing'; known"):
        find_adapter(f"{my_team}:nothing")
    with pytest.raises(UserError, match="No module named 'no_team'"):
        find_adapter("no_team:prepare")
