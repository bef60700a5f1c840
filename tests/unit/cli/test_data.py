from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.command import run


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with three rows of text and the file that explains them."""
    source = tmp_path / "shop"
    source.mkdir()
    (source / "rows.tsv").write_text("label\tuser\n1\tann\n0\tbob\n0\tann\n")
    columns = {"label": {"kind": "label"}, "user": {"kind": "id"}}
    (source / "schema.json").write_text(json.dumps({"name": "shop", "columns": columns}))
    return source


def test_synth_writes_the_rows_and_says_nothing_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "world"
    assert run("data", "synth", out, "--rows", "300", "--days", "2", "--seed", "3") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "300 rows over 2 days" in captured.err
    assert sum(pq.read_metadata(path).num_rows for path in out.glob("*.parquet")) == 300
    assert json.loads((out / "schema.json").read_text())["columns"]


def test_synth_replaces_a_world_only_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "world"
    given = ("data", "synth", out, "--days", "1", "--rows")
    assert run(*given, "64") == 0
    capsys.readouterr()
    assert run(*given, "80") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "a data set lies here already; remove it, have it overwritten, or choose" in told
    assert sum(pq.read_metadata(path).num_rows for path in out.glob("*.parquet")) == 64
    assert run(*given, "80", "--overwrite") == 0
    assert sum(pq.read_metadata(path).num_rows for path in out.glob("*.parquet")) == 80
    (out / "_truth/truth.json").unlink()  # any other data set
    capsys.readouterr()
    assert run(*given, "64", "--overwrite") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "a data set lies here already that is no synthetic world" in told
    assert sum(pq.read_metadata(path).num_rows for path in out.glob("*.parquet")) == 80


def test_synth_turns_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("data", "synth", tmp_path / "world", "--rows", "2000", "--days", "1")
    assert run(*given, "--option", "opposed_share=1", "--option", "like_bias=-30") == 0
    rows = pa.concat_tables(map(pq.read_table, (tmp_path / "world").glob("part-*.parquet")))
    assert len(rows) == 2_000
    assert not rows["like"].to_numpy().any()
    truth = json.loads((tmp_path / "world" / "_truth" / "truth.json").read_text())
    assert (truth["opposed_share"], truth["like_bias"], truth["finish_bias"]) == (1.0, -30.0, -1.2)
    capsys.readouterr()
    assert run(*given, "--option", "opposed=1") == 2
    assert "did you mean 'opposed_share'" in capsys.readouterr().err
    assert run(*given, "--option", "num_users=1.5") == 2
    assert "num_users is a whole number, got '1.5'" in capsys.readouterr().err


def test_synth_refuses_what_it_cannot_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "synth", tmp_path / "world", "--rows", "3") == 2
    assert "too few" in capsys.readouterr().err
    assert run("data", "synth", tmp_path / "world", "--rows", "0") == 2
    assert not (tmp_path / "world").exists()


def test_prepare_hands_its_options_to_the_adapter(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prepared"
    options = ("--source", shop, "--out", out, "--delimiter", "\\t", "--min-count", "2")
    assert run("data", "prepare", "csv", *options) == 0
    assert "shop: 2 columns are in" in capsys.readouterr().err
    table = pq.read_table(next(out.glob("*.parquet")))
    assert table["label"].to_pylist() == [1, 0, 0]
    users = table["user"].to_pylist()
    assert users[0] == users[2] != users[1]  # bob is rarer than twice, so unknown
    assert run("data", "prepare", "csv", *options) == 2
    assert run("data", "prepare", "csv", *options, "--overwrite") == 0


def test_prepare_names_what_is_wrong(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ("--source", shop, "--out", tmp_path / "prepared")
    assert run("data", "prepare", "frape", *places) == 2
    assert "did you mean 'frappe'?" in capsys.readouterr().err
    assert run("data", "prepare", "csv", *places, "--delimiter", "ab") == 2
    assert "--delimiter: must be one character" in capsys.readouterr().err
    assert not (tmp_path / "prepared").exists()


def test_inspect_shows_the_columns_and_the_shares_of_ranks(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "prepared"
    run("data", "prepare", "csv", "--source", shop, "--out", out, "--delimiter", "tab")
    capsys.readouterr()
    assert run("data", "inspect", out, "--world-size", "2", "--lanes", "2") == 0
    text = capsys.readouterr().out
    assert "0.3333 are 1" in text
    assert "2 of 2 ids, 0 unknown" in text
    assert "1 lanes each; rows by rank: 2, 1" in text
    assert run("data", "inspect", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 3
    assert facts["columns"]["user"]["distinct"] == 2


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Three files of eight rows: days 0 to 2, items 0 to 7 and, on day 2, ten times them."""
    out = tmp_path / "world"
    for day in range(3):
        item = [each * 10 if day == 2 else each // (day + 1) for each in range(8)]
        rows = pa.table({"item": item, "day": [day] * 8, "click": [0, 1] * 4})
        out.mkdir(exist_ok=True)
        pq.write_table(rows, out / f"{day}.parquet")
    kinds = {"item": {"kind": "id"}, "day": {"kind": "other"}, "click": {"kind": "label"}}
    (out / "schema.json").write_text(json.dumps({"name": "world", "columns": kinds}))
    return out


def write_recipe(world: Path, **options: Any) -> Path:
    path = world.parent / "recipe.toml"
    path.write_text(
        f"""
        name = "world"
        data = {{ path = "{world}", splits = {{ train = ["day <= 1"] }} }}
        features = {{ sparse = ["item"] }}
        model = {{ name = "dnn" }}
        tasks = [{{ name = "click", label = "click" }}]
        [embedding.tables.item]
        {options.get("rows", "")}
        ids = {options["ids"]}
        """
    )
    return path


def test_vocabulary_counts_the_rows_that_are_asked_for(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = world.parent / "list.parquet"
    asked = ("data", "vocabulary", world, "--column", "item", "--out", out)
    assert run(*asked, "--where", "day <= 1", "--min-count", "2") == 0
    assert "4 of 8 ids, which are 75.00% of all values, are in" in capsys.readouterr().err
    # Day 0 has each id once, day 1 each of 0 to 3 twice.
    assert pq.read_table(out).to_pydict() == {"id": [0, 1, 2, 3], "count": [3, 3, 3, 3]}
    assert run(*asked) == 2
    assert "already there; --overwrite replaces it" in capsys.readouterr().err
    assert run(*asked, "--where", "day == 2", "--overwrite") == 0
    assert pq.read_table(out)["id"].to_pylist() == list(range(0, 80, 10))


def test_vocabulary_takes_everything_from_a_recipe(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = world.parent / "lists" / "list.parquet"
    recipe = write_recipe(world, ids=f'{{ kind = "vocabulary", path = "{out}", min_count = 2 }}')
    assert run("data", "vocabulary", "--recipe", recipe) == 0
    assert pq.read_table(out)["id"].to_pylist() == list(range(8))
    capsys.readouterr()
    for wrong in ((world,), ("--column", "item"), ("--out", out), ("--where", "day == 1")):
        assert run("data", "vocabulary", "--recipe", recipe, *wrong) == 2
        assert "--recipe says what to read and write" in capsys.readouterr().err
    assert run("data", "vocabulary", world, "--column", "item") == 2
    assert "name either DIR, --column and --out, or --recipe" in capsys.readouterr().err
    assert run("data", "vocabulary", "--recipe", recipe, "--table", "itme") == 2
    assert "did you mean 'item'?" in capsys.readouterr().err
    assert run("data", "collisions", recipe, "--json") == 0
    table = json.loads(capsys.readouterr().out)[0]
    assert (table["kind"], table["rows"], table["unknown_values"]) == ("vocabulary", 4, 4)


def test_collisions_shows_what_a_hash_makes_of_the_ids(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = write_recipe(world, ids='"hash"', rows="rows = 1")
    assert run("data", "collisions", recipe) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in line.strip("│┃").split("│")] == [
        "item", "hash", "1", "100.00%", "8", "100.00%", "100.00%", "0.00%"
    ]  # fmt: skip
    assert run("data", "collisions", recipe, "embedding.tables.item.rows=1000000", "--json") == 0
    table = json.loads(capsys.readouterr().out)[0]
    assert (table["ids"], table["sharing"], table["values"]) == (8, 0, 16)


def test_inspect_says_which_lanes_work(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "inspect", tmp_path, "--world-size", "3") == 2
    assert "9 lanes work" in capsys.readouterr().err
    assert run("data", "inspect", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
