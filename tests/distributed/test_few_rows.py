"""Ranks with no row, one row and nearly all ids: two ranks train what one does."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import Recipe, UserError, from_dict
from tests.helpers.runs import RECIPE, Start, Trained, alone, rows_seen, train_on, write_rows

FEW = {"train": 4, "valid": 4, "test": 5}
MANY_IDS = 6_000
EPOCHS = "train.epochs=3"
TIMED = "data.order='time'"
CASES = ("none on rank 1", "one in each lane", "all ids in one row")


def make_recipe(data: Path, *overrides: str) -> Recipe:
    """The recipe of these tests with the one task that every row has a label of."""
    one = RECIPE | {"tasks": RECIPE["tasks"][:1]}
    return from_dict(one, [f"data.path='{data}'", *overrides])


def heavy(directory: Path) -> Path:
    """Rows of which one has every id of the bags, thousands of them."""
    write_rows(directory, {"train": 40, "valid": 8, "test": 8})
    path = directory / "0-train.parquet"
    table = pq.read_table(path)
    tags: list[list[int]] = [[] for _ in range(table.num_rows)]
    tags[7] = [number % 12 for number in range(MANY_IDS)]
    weights = [[1 / MANY_IDS] * len(bag) for bag in tags]
    seen = [[] if key != 7 else [number % 25 for number in range(MANY_IDS)] for key in range(40)]
    for name, values, kind in (
        ("tags", tags, pa.int64()),
        ("tag_weights", weights, pa.float32()),
        ("seen", seen, pa.int64()),
    ):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, pa.list_(kind)))
    pq.write_table(table, path, row_group_size=50)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trained, Trained]]:
    """By case, the run of one rank and that of two."""
    place = tmp_path_factory.mktemp("few")
    few = write_rows(place / "few", FEW)
    recipes = (
        make_recipe(few, EPOCHS, TIMED),
        make_recipe(few, EPOCHS),
        make_recipe(heavy(place / "heavy"), EPOCHS),
    )
    starts = {
        n: [Start(each, place / f"{case} {n}") for case, each in zip(CASES, recipes, strict=True)]
        for n in (1, 2)
    }
    return dict(zip(CASES, zip(alone(starts[1]), train_on(2, starts[2]), strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_does(runs: dict[str, tuple[Trained, Trained]], case: str) -> None:
    one, two = runs[case]
    assert one.steps == two.steps == (9 if case == CASES[2] else 3)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_every_row_once(runs: dict[str, tuple[Trained, Trained]], case: str) -> None:
    _, two = runs[case]
    place = two.checkpoint.parents[2]
    data = place / ("heavy" if case == CASES[2] else "few")
    order = [TIMED] if case == CASES[0] else []
    keys = rows_seen(two.checkpoint, make_recipe(data, *order))
    assert sorted(keys) == [0, 1, 2]
    count = 40 if case == CASES[2] else FEW["train"]
    assert all(sorted(each) == list(range(count)) for each in keys.values())


def test_fewer_rows_than_lanes_are_refused_with_what_to_do(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows", {"train": 3, "valid": 4, "test": 4})
    with pytest.raises(UserError, match=r"the split 'train' has 3 rows for 4 lanes; .*fewer lanes"):
        alone([Start(make_recipe(data), tmp_path / "run")])
