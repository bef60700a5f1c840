from __future__ import annotations

import json
from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.data.adapters import PrepareOptions, prepare
from prismrec.data.adapters.vocabulary import Vocabulary
from tests.unit.data_adapters.reading import read

COLUMNS = {
    "label": {"kind": "label"},
    "user": {"kind": "id", "description": "who"},
    "hour": {"kind": "id", "num_ids": 24},
    "viewed": {"kind": "ids", "separator": " "},
    "sizes": {"kind": "ids", "num_ids": 9},
    "weights": {"kind": "numbers"},
    "price": {"kind": "number"},
    "stamp": {"kind": "time", "type": "timestamp"},
    "comment": {"kind": "other"},
}
TEXT = """comment;stamp;price;weights;sizes;viewed;hour;user;label;unused
fine;1970-01-01 00:00:02;1.5;0.5|1;1|2;b a;3;ann;1;x
;1970-01-01 00:00:03;;;;a zz;;bob;0;x
ok;1970-01-01 00:00:04;2;1;8;;23;;;x
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "rows.csv").write_text(TEXT)
    (path / "schema.json").write_text(json.dumps({"name": "shop", "columns": COLUMNS}))
    return path


def test_every_kind_by_hand(source: Path, tmp_path: Path) -> None:
    schema = prepare("csv", source, tmp_path / "out", PrepareOptions(delimiter=";"))
    assert read(tmp_path / "out").to_pydict() == {
        "label": [1, 0, None],
        "user": [0, 1, None],
        "hour": [3, None, 23],
        "viewed": [[1, 0], [0, 2], None],
        "sizes": [[1, 2], None, [8]],
        "weights": [[0.5, 1.0], None, [1.0]],
        "price": [1.5, None, 2.0],
        "stamp": [2000, 3000, 4000],
        "comment": ["fine", None, "ok"],
    }
    assert {name: column.num_ids for name, column in schema.columns.items() if column.num_ids} == {
        "user": 2,
        "hour": 24,
        "viewed": 3,
        "sizes": 9,
    }
    assert schema.columns["user"].description == "who"
    assert Vocabulary.read(tmp_path / "out", "viewed").values.to_pylist() == ["a", "b", "zz"]


def test_rare_values_get_no_id_and_files_follow_by_name(source: Path, tmp_path: Path) -> None:
    (source / "a.csv").write_text(TEXT)
    options = PrepareOptions(delimiter=";", min_count=3)
    prepare("csv", source, tmp_path / "out", options)
    got = read(tmp_path / "out").to_pydict()
    assert got["viewed"] == [[-1, 0], [0, -1], None] * 2
    assert got["user"] == [None] * 6


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (
            TEXT,
            {"usr": {"kind": "id"}},
            "column 'usr' of the schema is not in the file; did you mean 'user'",
        ),
        (TEXT, {"comment": {"kind": "number"}}, r"rows.csv: cannot be parsed: .*fine"),
        (
            TEXT,
            {"viewed": {"kind": "ids", "num_ids": 3}},
            r"column 'viewed': Failed to parse string: 'a zz'",
        ),
        (TEXT, {"price": {"kind": "label"}}, r"column 'price': Float value 1.500000 was truncated"),
        (TEXT, {"user": {"kind": "name"}}, r"schema.json: columns.user.kind: Input should be"),
        ("", {"user": {"kind": "id"}}, r"rows.csv: cannot be parsed: Empty CSV file"),
        ("user\n", {"user": {"kind": "id"}}, "'shop': there is not a single row to write"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    source: Path, tmp_path: Path, text: str, columns: dict[str, object], message: str
) -> None:
    (source / "rows.csv").write_text(text)
    (source / "schema.json").write_text(json.dumps({"name": "shop", "columns": columns}))
    with pytest.raises(UserError, match=message):
        prepare("csv", source, tmp_path / "out", PrepareOptions(delimiter=";"))
    assert not (tmp_path / "out").exists()


def test_the_schema_file_must_exist(source: Path, tmp_path: Path) -> None:
    options = PrepareOptions(schema=tmp_path / "my.json")
    with pytest.raises(UserError, match=r"my.json: no such file; name with --schema"):
        prepare("csv", source, tmp_path / "out", options)
