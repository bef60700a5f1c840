"""How full tables are, on two ranks, where the rows that training looks up can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import Recipe
from prismrec.data.encode.tables import encoders_of
from prismrec.data.source import open_data
from tests.helpers.runs import ROWS, Start, Trained, alone, make_recipe, train_on, write_rows

STEPS = 21
"""An epoch: every row is trained on."""
TRACKED = (
    "embedding.track_touched=true",
    f"train.steps={STEPS}",
    "features.sparse=['user', 'item', 'tags', {name='tab', table='tab'}]",
    "embedding.tables.item={rows=16, ids='hash', sharding='column_wise'}",
    "embedding.tables.tab={rows=8, ids={kind='hash', hashes=2}}",
    "embedding.tables.tags={sharding='data_parallel', unknown_rows=3}",
)
CASES = {
    "packed": ("embedding.layout=packed", "embedding.tables.user={sharding='row_wise'}"),
    "separate": ("embedding.layout=separate", "embedding.tables.user={sharding='row_wise'}"),
    "copies": (
        "workers.count=2",
        "embedding.ranks_per_copy=1",
        "embedding.tables.user={sharding='table_wise'}",
    ),
    "managed": (
        "embedding.layout=packed",
        "embedding.tables.user={rows=16, ids={kind='managed', interval=3}}",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten users, a third of the ids missing and a third too large; nine items; half of the tags.

    Neighbours have the same tags and users, so that no rank sees them all.
    """
    directory = write_rows(tmp_path_factory.mktemp("occupancy") / "rows")
    path = directory / "0-train.parquet"
    rows = pq.read_table(path)
    number = np.arange(rows.num_rows)
    users = [[each * 10 // len(number), 99 + each, None][each % 3] for each in number.tolist()]
    tags = number * 6 // len(number)
    for name, column in {
        "user": pa.array(users, pa.int64()),
        "item": pa.array(1000 + number % 9),
        "tags": pa.array([[tag] for tag in tags.tolist()]),
        "tag_weights": pa.array([[1.0]] * len(number)),
    }.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, column.cast(rows.schema.field(name).type))
    pq.write_table(rows, path, row_group_size=50)
    return directory


def _recipe(data: Path, case: str) -> Recipe:
    return make_recipe(data, *CASES[case], *TRACKED)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    place = tmp_path_factory.mktemp("runs")
    starts = [Start(_recipe(data, case), place / case) for case in CASES]
    return dict(zip(CASES, train_on(2, starts), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_rows_in_use_count_once(trained: dict[str, Trained], data: Path, case: str) -> None:
    log = {name: values[STEPS] for name, values in trained[case].log.items() if STEPS in values}
    encode = encoders_of(_recipe(data, case), open_data(data).schema)["item"]
    used = len(set(encode(np.arange(1000, 1009))[0].tolist()))
    assert 1 < used < 9, "some items share their row"
    assert log["ids/tags/fill"] == 6 / 12
    assert log["ids/item/fill"] == used / 16
    ids = math.log(1 - used / 16) / math.log(1 - 1 / 16)
    assert log["ids/item/collisions"] == pytest.approx(1 - used / ids)
    assert 0 < log["ids/tab/fill"] <= 6 / 8
    assert "ids/tab/collisions" not in log, "two hashes"
    assert "ids/tags/collisions" not in log, "no hash"
    if case == "managed":
        assert 1 <= log["ids/user/rows_in_use"] <= 16
        return
    assert log["ids/user/fill"] == 10 / 40
    third = 109 / ROWS["train"]
    assert log["ids/user/missing"] == log["ids/user/out_of_range"] == third
    assert log["ids/user/unknown"] == 2 * third
    assert log["ids/item/unknown"] == log["ids/item/missing"] == log["ids/item/out_of_range"] == 0


def test_memory_with_maps_and_records_is_as_predicted(trained: dict[str, Trained]) -> None:
    for case, run in trained.items():
        log = run.log
        assert log["memory/predicted_bytes"] == log["memory/table_bytes"], case


def test_without_the_record_there_is_no_fill(data: Path, tmp_path: Path) -> None:
    untracked = make_recipe(data, *CASES["packed"], *TRACKED, "embedding.track_touched=false")
    (run,) = alone([Start(untracked, tmp_path / "run")])
    assert "ids/item/unknown" in run.log
    assert not any(name.endswith(("/fill", "/collisions")) for name in run.log)
