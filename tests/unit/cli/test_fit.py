"""`prismrec data fit`: a recipe in, the statistics of its numbers out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prismrec.config import load
from prismrec.data.encode.tables import encoders_of
from prismrec.data.source import open_data
from tests.helpers.command import run
from tests.unit.data import small

RECIPE = """
name = "small"
[data]
path = "{rows}"
[data.splits]
train = ["key < 60"]
[features]
sparse = ["item"]
numbers = ["price", {{ name = "cheap", column = "price", encoding = "log_bucket" }}]
statistics = "{rows}/numbers.json"
[model]
name = "dcnv2"
[[tasks]]
name = "click"
label = "click"
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Prices 0, 0.5, ..., 49.5, of which those below 30 are trained on."""
    small.write(tmp_path / "rows", [100])
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(rows=tmp_path / "rows"))
    return path


def test_the_file_that_the_recipe_names_is_written(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "fit", recipe) == 0
    captured = capsys.readouterr()
    assert "price" in captured.out
    assert "cheap" not in captured.out, "it needs no statistics"
    assert "60 training rows were read" in captured.err
    loaded = load(recipe)
    statistics = Path(str(loaded.features.statistics))
    found = json.loads(statistics.read_text())
    assert (found["where"], found["rows"], list(found["numbers"])) == (["key < 60"], 60, ["price"])
    assert found["numbers"]["price"]["most"] == 29.5
    assert len(encoders_of(loaded, open_data(loaded.data.path).schema)) == 1 + 3 + 1
    assert run("data", "fit", recipe) == 2
    assert "numbers.json: already there; --overwrite replaces it" in capsys.readouterr().err


def test_other_places_rows_and_forms(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "far" / "other.json"
    wide = 'data.splits.train=["key < 100"]'
    assert run("data", "fit", recipe, wide, "--out", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["numbers"]["price"]["most"] == 49.5
    assert run("data", "fit", recipe, "features.statistics=s3://there/x.json") == 2
    assert "--out: features.statistics names no local file" in capsys.readouterr().err
