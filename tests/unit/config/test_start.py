"""Recipe keys of what a run starts with."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import ConfigError, UserError, load
from prismrec.config.document import to_toml
from prismrec.config.recipe import Recipe
from prismrec.data.source import open_data
from prismrec.train.initial import check_start, with_absolute_sources
from tests.helpers.runs import make_recipe, write_rows

VECTORS = "embedding.tables.user.pretrained=[{set='wide', path='v.parquet', scale=0.5}]"
WARM = "train.warm_start={source='out/first', tables={item='tag', tags=''}, strict=true}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows")


def test_a_recipe_with_both_reads_back(data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(data, VECTORS, WARM)
    assert recipe.embedding.tables["user"].pretrained[0].scale == 0.5
    assert recipe.train.warm_start is not None
    assert recipe.train.warm_start.tables == {"item": "tag", "tags": ""}
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    assert load(tmp_path / "recipe.toml") == recipe


def test_paths_mean_the_same_everywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe: Recipe = with_absolute_sources(make_recipe(data, VECTORS, WARM))
    assert recipe.embedding.tables["user"].pretrained[0].path == str(tmp_path / "v.parquet")
    assert recipe.train.warm_start is not None
    assert recipe.train.warm_start.source == str(tmp_path / "out" / "first")
    plain = make_recipe(data)
    assert with_absolute_sources(plain) == plain


def test_a_set_is_filled_once(data: Path) -> None:
    twice = "[{set='wide', path='a'}, {set='narrow', path='b'}, {set='wide', path='c'}]"
    with pytest.raises(
        ConfigError, match="user.pretrained: sets named twice: wide; one file fills"
    ):
        make_recipe(data, f"embedding.tables.user.pretrained={twice}")


def test_mistakes_are_found_before_a_process_starts(data: Path, tmp_path: Path) -> None:
    source = open_data(str(data))
    with pytest.raises(UserError, match="v.parquet: no such file"):
        check_start(make_recipe(data, VECTORS), source)
    with pytest.raises(UserError, match="neither a checkpoint nor the directory of a run"):
        check_start(make_recipe(data, f"train.warm_start.source='{tmp_path}'"), source)
    check_start(make_recipe(data), source)
