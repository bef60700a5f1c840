"""A recipe on machines that need not exist, and what is refused before a process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import prismrec
from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.jobs.plan import Machines, plan_recipe
from prismrec.jobs.train import check_before_start
from tests.helpers.runs import make_recipe, write_rows

GIB = 2**30
MACHINES = Machines(8, 4, "cuda", GIB, 2 * GIB)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("plan") / "rows")


def test_what_a_row_takes_besides_is_planned_for(data: Path) -> None:
    def device_bytes(*overrides: str) -> int:
        recipe = make_recipe(data, "train.device=cuda", "embedding.sharding=table_wise", *overrides)
        found = plan_recipe(recipe, MACHINES)
        return sum(rank["device_bytes"] for rank in found["ranks"])

    # 41 users, 26 items and 13 tags, with their rows for unknown ids
    more = device_bytes("embedding.track_touched=true") - device_bytes()
    assert more == 4 * (41 + 26 + 13)


def test_rows_are_not_read(data: Path, tmp_path: Path) -> None:
    columns = {
        "user": Column(kind="id", num_ids=5),
        "item": Column(kind="id", num_ids=6),
        "tags": Column(kind="ids", num_ids=7),
        "tag_weights": Column(kind="numbers"),
        "seen": Column(kind="ids", num_ids=6),
        **{name: Column(kind="number") for name in ("x", "y")},
        **{name: Column(kind="label") for name in ("click", "buy")},
        "at": Column(kind="time"),
    }
    DataSchema(name="bare", columns=columns).write(tmp_path)
    found = plan_recipe(make_recipe(tmp_path, "train.device=cuda"), MACHINES)
    assert {line["table"]: line["rows"] for line in found["tables"]} == {
        "user": 6,
        "item": 7,
        "tags": 8,
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("embedding.communication.forward=int8", "embedding.sharding=row_wise"),
            "adds up the parts",
        ),
        (("embedding.tables.item={kernel='fused_uvm', sharding='data_parallel'}",), "fused_uvm"),
        (
            (
                "workers.count=2",
                "embedding.communication.forward=bf16",
                "embedding.sharding=data_parallel",
            ),
            "no vector travels",
        ),
    ],
)
def test_no_run_starts_with_tables_that_can_be_placed_nowhere(
    data: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_before_start(make_recipe(data, *overrides))


def test_one_rank_may_be_told_of_types_that_nothing_travels_in(data: Path) -> None:
    recipe = make_recipe(
        data, "embedding.communication.forward=bf16", "embedding.sharding=data_parallel"
    )
    check_before_start(recipe)
    assert plan_recipe(recipe, Machines(1, 1, "cpu", GIB, GIB))["fits"]
    with pytest.raises(UserError, match="no vector travels"):
        plan_recipe(recipe, Machines(2, 2, "cpu", GIB, GIB))


def test_the_function_gives_the_document_of_the_command(data: Path) -> None:
    recipe = make_recipe(data, "train.device=cuda")
    document = prismrec.plan(recipe, prismrec.Machines(8, 4, "cuda", GIB, 2 * GIB), batch_size=6)
    assert document == plan_recipe(recipe, MACHINES, 6)
    assert document["fits"]
    assert document["machines"]["batch_size"] == 6


def test_a_run_with_open_layouts_may_start(data: Path) -> None:
    check_before_start(make_recipe(data, "embedding.layout=auto"))
