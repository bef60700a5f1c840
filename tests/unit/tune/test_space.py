"""Spaces that are read and drawn from, and what of them a recipe does not take."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from prismrec.config import UserError, load
from prismrec.jobs.tune.space import (
    Dimension,
    check_space,
    draw_trials,
    read_space,
    recipes_of,
)

RATE = "train.optimizer.learning_rate"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "x"\nfeatures.sparse = ["a"]\ntasks = [{ name = "t", label = "l" }]\n'
        'model = { name = "dcnv2" }\n[data]\npath = "rows"\n'
    )
    return path


def test_both_ways_to_write_a_key(tmp_path: Path) -> None:
    text = """
    train.optimizer.learning_rate = { loguniform = [1e-4, 1e-2] }
    [embedding]
    dim = { choice = [8, 16] }
    [data]
    shuffle_rows = { int = [10, 12] }
    """
    assert read_space(write(tmp_path, text)) == (
        Dimension(RATE, "loguniform", (1e-4, 1e-2)),
        Dimension("embedding.dim", "choice", (8, 16)),
        Dimension("data.shuffle_rows", "int", (10, 12)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"names no key; write a line such as"),
        ("a = ", r"not valid TOML"),
        (
            "train.steps = 3",
            r"train.steps: say one of uniform, loguniform, int, choice with a list",
        ),
        ("train.steps = { ints = [1, 2] }", r"train.steps: unknown way 'ints'; did you mean 'int'"),
        (
            "train.steps = { int = [2, 1] }",
            r"train.steps.int: must be two rising whole numbers, got",
        ),
        ("train.steps = { int = [1.5, 2] }", r"must be two rising whole numbers"),
        ("train.steps = { uniform = [1, 2, 3] }", r"must be two rising numbers"),
        ("train.steps = { choice = [] }", r"must be a list of values"),
        ("train.steps = { loguniform = [0, 1] }", r"must be above 0, got 0"),
    ],
)
def test_mistakes_of_a_space(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(write(tmp_path, text))
    with pytest.raises(UserError, match=r"no such file"):
        read_space(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.optimizer.learning_rte = { uniform = [0.1, 0.2] }",
            r"learning_rte = 0.1: train.optimizer.learning_rte: unknown key; did you mean 'learning_rate'",
        ),
        (f"{RATE} = {{ uniform = [-1, 1] }}", r"learning_rate = -1.0: .*must be > 0.0, got -1.0"),
        (
            'model.hidden = { choice = [[8], "x"] }',
            r'model.hidden = "x": model.hidden: must be a list',
        ),
        ("data.path = { choice = [1] }", r"data.path is the same for all trials"),
        ("workers.count = { int = [1, 2] }", r"workers.count is the same for all trials"),
        (
            'data.splits.valid = { choice = [["day == 1"]] }',
            r"data.splits.valid is the same for all",
        ),
    ],
)
def test_values_that_the_recipe_does_not_take_are_told_with_their_key(
    tmp_path: Path, recipe: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        check_space(read_space(path), recipe, (), path)


def test_values_that_do_not_go_together_are_told_before_anything_starts(
    tmp_path: Path, recipe: Path
) -> None:
    text = "data.lanes = { choice = [8, 10] }\ndata.global_batch_size = { choice = [4096, 4000] }"
    path = write(tmp_path, text)
    drawn = draw_trials(read_space(path), 4, 0)
    with pytest.raises(
        UserError, match=r"data.lanes=10, data.global_batch_size=4096, which do not go"
    ):
        recipes_of(drawn, recipe, ())


def test_trials_are_those_of_the_seed_and_differ(tmp_path: Path, recipe: Path) -> None:
    space = (
        Dimension(RATE, "loguniform", (1e-4, 1e-2)),
        Dimension("embedding.dim", "choice", (4, 8)),
    )
    few, many = draw_trials(space, 5, 3), draw_trials(space, 400, 3)
    assert many[:5] == few
    assert draw_trials(space, 5, 4) != few
    assert len({tuple(each.values()) for each in many}) == 400
    made = recipes_of(few, recipe, ("seed=7",))
    assert [each.train.optimizer.learning_rate for each in made] == [each[RATE] for each in few]
    assert {each.seed for each in made} == {7}
    assert load(recipe).embedding.dim != 4
    with pytest.raises(
        UserError, match=r"5 trials that differ could not be drawn, only 2; ask for"
    ):
        draw_trials(space[1:], 5, 0)


def test_values_are_spread_as_their_way_says() -> None:
    rng = np.random.default_rng(0)
    log = np.log10([Dimension("k", "loguniform", (1e-4, 1e0)).draw(rng) for _ in range(4000)])
    assert np.histogram(log, 4, (-4, 0))[0] == pytest.approx(1000, abs=120)
    plain = [Dimension("k", "uniform", (-1.0, 1.0)).draw(rng) for _ in range(4000)]
    assert np.mean(plain) == pytest.approx(0, abs=0.05)
    assert np.std(plain) == pytest.approx(1 / math.sqrt(3), abs=0.02)
    whole = [Dimension("k", "int", (3, 5)).draw(rng) for _ in range(600)]
    assert {type(each) for each in whole} == {int}
    assert sorted(set(whole)) == [3, 4, 5]
