"""Recipe files on top of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec import config
from prismrec.config.models.single import DNN
from prismrec.config.read import read

BASE = """
name = "base"
seed = 3
[data]
path = "somewhere"
global_batch_size = 512
[features]
sparse = ["user", "item"]
[embedding.optimizer]
name = "adagrad"
learning_rate = 0.5
eps = 1e-6
[model]
name = "dcnv2"
num_cross_layers = 2
hidden = [8]
[[tasks]]
name = "click"
label = "is_click"
[[tasks]]
name = "like"
label = "is_like"
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_has_the_keys_of_its_base_that_it_does_not_say(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", BASE)
    own = write(
        tmp_path,
        "deep/own.toml",
        """
base = "../base.toml"
name = "own"
[embedding.optimizer]
learning_rate = 0.1
[model]
name = "dnn"
[[tasks]]
name = "follow"
label = "is_follow"
""",
    )
    recipe = config.load(own, ["seed=4"])
    assert (recipe.name, recipe.seed, recipe.data.global_batch_size) == ("own", 4, 512)
    optimizer = recipe.embedding.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.eps) == ("adagrad", 0.1, 1e-6)
    assert recipe.model == DNN(name="dnn"), "another model takes nothing of the base's"
    assert recipe.task_names == ("follow",), "lists are taken as a whole"


def test_bases_have_bases(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", "x = 1\ny = 1\nz = 1\n")
    write(tmp_path, "b.toml", 'base = "a.toml"\ny = 2\nz = 2\n')
    assert read(write(tmp_path, "c.toml", 'base = "b.toml"\nz = 3\n')) == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "nowhere.toml"', r"nowhere.toml: no such recipe file, which .*own.toml names as"),
        ('base = "own.toml"', r"base: 'own.toml' is built on this file itself"),
        ('base = "loop.toml"', r"loop.toml: base: 'own.toml' is built on this file itself"),
        (
            'base = "broken.toml"',
            r"broken.toml: not valid TOML, which .*own.toml names as its base: Inv",
        ),
        ("base = 3", "base: must be the path of a recipe file, got 3"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "loop.toml", 'base = "own.toml"')
    write(tmp_path, "broken.toml", "x = ")
    with pytest.raises(config.UserError, match=message):
        config.load(write(tmp_path, "own.toml", text))
