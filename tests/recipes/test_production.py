"""The production model: fitted, trained, exported and served as its recipe says, on a few made-up rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

import prismrec
from prismrec.config import Recipe, load
from prismrec.data.fit_numbers import fit_numbers, write_statistics
from prismrec.data.semantic.fit import Fit
from prismrec.data.source import open_data
from prismrec.jobs.systems import parameters
from tests.helpers.runs import Start, alone, train_on
from tests.recipes.kuairand import write_small_kuairand
from tests.recipes.test_systems import SMALL

RECIPE = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "kuairand_production.toml"
STEPS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the files that the recipe names."""
    folder = tmp_path_factory.mktemp("production")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    write_small_kuairand(folder / "out" / "kuairand")
    vectors = Path("out/kuairand/_vectors/graph")
    prismrec.semantic_ids(vectors, "out/kuairand_sid.parquet", Fit("rq_kmeans", sizes=(4, 4, 4)))
    recipe = load(RECIPE)
    assert recipe.features.statistics is not None
    fitted = fit_numbers(recipe, open_data(recipe.data.path))
    write_statistics(fitted, Path(recipe.features.statistics))
    yield folder
    patch.undo()


def small(*overrides: str) -> Recipe:
    length = [f"train.steps={STEPS}", f"train.epochs={STEPS}"]
    return load(RECIPE, [*SMALL, *length, "model.dropout=0.0", *overrides])


@pytest.mark.timeout(300)
def test_it_trains_the_same_on_one_rank_and_two(place: Path) -> None:
    one, two = (
        train([Start(small(), place / f"{ranks}-ranks")])[0]
        for ranks, train in ((1, alone), (2, lambda starts: train_on(2, starts)))
    )
    assert len(one.losses) == STEPS
    assert all(math.isfinite(loss) for loss in one.losses)
    assert one.losses == pytest.approx(two.losses, rel=2e-4)


def test_what_is_registered_is_what_was_trained(place: Path) -> None:
    result = prismrec.train(small(), ray=False)
    again = prismrec.evaluate(result.published.model, "out/kuairand")["test"]
    for task in ("click", "long_view", "like"):
        assert again[f"{task}/logloss"] == pytest.approx(
            result.metrics[f"{task}/logloss"], abs=1e-4
        )
    assert prismrec.predict(result.published.model, "out/kuairand", "scored")["rows"] == 700


def test_its_size_is_that_of_its_parts(place: Path) -> None:
    recipe = small()
    dense, table = parameters(recipe, open_data(recipe.data.path).schema)
    assert dense > 0
    assert table > 0
    wider = small(
        "embedding.sets=[{name='watching',dim=16},{name='reacting',dim=8},{name='shared',dim=16}]"
    )
    assert parameters(wider, open_data(recipe.data.path).schema)[1] == 2 * table
