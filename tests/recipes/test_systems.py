"""Every named system has its two recipes, and each of them trains the same on one rank and on two."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from prismrec.config import Recipe, load
from prismrec.data.schema import DataSchema
from prismrec.data.world import write_world
from prismrec.jobs.analyze import CHAPTERS, Request, analyze
from prismrec.jobs.systems import SYSTEMS, sizes
from tests.helpers.runs import Start, Trained, alone, train_on
from tests.recipes.codes import drawn_codes
from tests.recipes.kuairand import write_small_kuairand
from tests.recipes.vectors import with_drawn_vectors

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
FOLDERS = ("world", "kuairand")
NAMES = [system.name for system in SYSTEMS]
SMALL = (
    "data.global_batch_size=128",
    "data.shuffle_rows=256",
    "train.device=cpu",
    "train.precision=fp32",
    "train.log_every=1",
    "evaluate.bootstrap=0",
    "checkpoint.keep_best=false",
)
"""What every recipe is given here besides its data and steps; its model stays as it is but for dropout."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_system_has_a_recipe_and_every_recipe_a_system(folder: str) -> None:
    assert {path.stem for path in (FOLDER / folder).glob("*.toml")} == {*NAMES, "base"}


def test_systems_are_told_apart() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(system.line and system.source for system in SYSTEMS)


def test_the_listed_sizes_are_those_of_the_recipes() -> None:
    listed = {size.system.name: (size.dense, size.table) for size in sizes("world")}
    assert list(listed) == NAMES
    unknown = {name for name, size in listed.items() if None in size}
    assert unknown == {"semantic_ids"}, "its file of codes is not there"
    # 6 bits of 1 row for unknown ids each; a weight for two tasks is 4 wide.
    assert listed["lr"] == (2 + 5 * 2, listed["dnn"][1] // 16 * 4)


def _recipe(folder: str, name: str, data: Path, steps: int) -> Recipe:
    path = FOLDER / folder / f"{name}.toml"
    # An epoch of the small data is a few steps.
    length = [f"{key}={steps}" for key in ("train.steps", "train.epochs", "evaluate.every_steps")]
    overrides = [f"data.path='{data}'", *length, *SMALL]
    overrides += drawn_codes(path, data)
    has_dropout = hasattr(load(path).model, "dropout")  # ranks draw different units
    recipe = load(path, overrides + ["model.dropout=0.0"] * has_dropout)
    return with_drawn_vectors(recipe, data)


def _world(place: Path) -> DataSchema:
    return write_world(place, rows=1400, days=7, seed=1)


WRITE: dict[str, Callable[[Path], DataSchema]] = {
    "world": _world,
    "kuairand": write_small_kuairand,
}


class Runs:
    """What the recipes of a folder come to on one rank and on two, each world size trained once.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.of = cache(self._train)

    def _train(self, folder: str, world_size: int, steps: int) -> dict[str, Trained]:
        data = self.place / folder / "data"
        if not data.exists():
            WRITE[folder](data)
        runs = self.place / folder / f"{world_size}-{steps}"
        starts = [Start(_recipe(folder, name, data, steps), runs / name) for name in NAMES]
        train = alone if world_size == 1 else lambda these: train_on(world_size, these, 1500)
        return dict(zip(NAMES, train(starts), strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("systems"))


def _check(runs: Runs, folder: str, name: str, steps: int, tolerance: float) -> None:
    one, two = (runs.of(folder, world_size, steps)[name] for world_size in (1, 2))
    assert one.steps == two.steps == steps
    assert len(one.losses) == steps
    assert all(math.isfinite(loss) for loss in one.losses)
    assert one.losses == pytest.approx(two.losses, rel=tolerance)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", NAMES)
def test_five_steps_are_the_same_on_one_rank_and_two(runs: Runs, folder: str, name: str) -> None:
    _check(runs, folder, name, steps=5, tolerance=2e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", NAMES)
def test_thirty_steps_train(runs: Runs, folder: str, name: str) -> None:
    _check(runs, folder, name, steps=30, tolerance=2e-2)
    losses = runs.of(folder, 1, 30)[name].losses
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_system_can_be_looked_at(runs: Runs, folder: str, name: str, tmp_path: Path) -> None:
    runs.of(folder, 1, 5)
    request = Request(
        models=(str(runs.place / folder / "1-5" / name),),
        data=str(runs.place / folder / "data"),
        out=tmp_path,
        split="all",
        rows=1000,
        chapters=(),
        fields=(None, None),
        target=None,
        uri=f"sqlite:///{tmp_path}/none.db",
    )
    document = analyze(request, lambda *_: None)
    assert list(document["chapters"]) == list(CHAPTERS)
    for key, chapter in document["chapters"].items():
        assert chapter["summary"] or chapter["missing"], key
        for sentence in (*chapter["summary"], *chapter["missing"]):
            assert not re.search(r"\b(nan|inf|None)\b", sentence), sentence
