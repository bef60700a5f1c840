"""Numbers from Parquet to batches, and from requests to the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prismrec.config import UserError
from prismrec.config.encodings import MNSE
from prismrec.data.encode.numbers.tables import number_tables
from prismrec.data.encode.tables import encoded_tables, encoders_of
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from prismrec.embeddings.row_ids import TableIds, align
from tests.unit.data import small
from tests.unit.numbers.rows import num_rows, rows_of

SHIFTED = MNSE(levels=64, quantiser="linear", low=-5.0, high=5.0)
SIGNED = MNSE(bases=(2, 5), levels=100, quantiser="linear", high=4.0, negative="sign")
PRICES = [
    None,
    float("nan"),
    float("inf"),
    float("-inf"),
    -5.0,
    -2.2,
    -0.0,
    0.0,
    1e-9,
    1.7,
    4.5,
    9.0,
]
FEATURES: dict[str, Any] = {
    "sparse": ["item"],
    "dense": ["price"],
    "numbers": [
        {
            "name": "cost",
            "column": "price",
            "encoding": SHIFTED.model_dump(mode="json", exclude_none=True),
        },
        {
            "name": "gain",
            "column": "price",
            "encoding": SIGNED.model_dump(mode="json", exclude_none=True),
        },
    ],
}
NOT_DENSE = {**FEATURES, "dense": []}
"""Infinite numbers have rows of their own, but as inputs of the dense part they would be an error."""
FIRST = {"gain": {2: num_rows(SHIFTED, 2), 5: 0}, "cost": {2: 0, 3: 0, 10: 0}}
"""First row of each number in each table: `gain` comes after `cost` in that of the base 2."""


def data(path: Path, prices: pa.Array | None = None) -> Path:
    values = pa.array(PRICES, pa.float64()) if prices is None else prices
    count = len(values)
    key = np.arange(count)
    table = pa.table({"key": key, "item": key % 50, "price": values, "click": key % 2, "at": key})
    return small.write_table(path, table)


def expected(name: str, encoding: MNSE, base: int, values: list[float | None]) -> list[int]:
    return [row for v in values for row in rows_of(v, encoding, base, FIRST[name][base])]


@pytest.mark.parametrize("order", ["file", "shuffle"])
def test_a_batch_holds_the_rows_of_every_number(tmp_path: Path, order: str) -> None:
    reader = small.reader(
        data(tmp_path), features=NOT_DENSE, order=order, lanes=2, global_batch_size=4
    )
    names = ["item", "cost::b2", "cost::b3", "cost::b10", "gain::b2", "gain::b5"]
    seen = 0
    for batch, _ in reader.epoch():
        assert batch.sparse.keys() == names
        prices = [PRICES[key] for key in batch.group.tolist()]
        assert batch.sparse["item"].values().tolist() == batch.group.tolist()
        for name, encoding in (("cost", SHIFTED), ("gain", SIGNED)):
            for base in encoding.bases:
                field = batch.sparse[f"{name}::b{base}"]
                assert field.values().tolist() == expected(name, encoding, base, prices)
                assert field.lengths().tolist() == [len(field.values()) // batch.num_rows] * 4
        seen += batch.num_rows
    assert seen == len(PRICES)
    odd = {"cost": 2 + 2 + 1, "gain": 2 + 2 + 3}  # missing, infinite, above 5 or 4 without a sign
    for name in names[1:]:
        assert reader.unknown_ids[name] == odd[name.partition("::")[0]]
        assert reader.missing_ids[name] == 2
        assert reader.seen_ids[name] == len(PRICES)


def test_numbers_beside_bags_and_weights(tmp_path: Path) -> None:
    """Where a feature has weights, the rows of numbers weigh 1."""
    key = np.arange(8)
    table = small.table(0, 8)
    table = table.append_column(
        "bag", pa.array([[k] * (k % 3) for k in key.tolist()], pa.list_(pa.int64()))
    )
    table = table.append_column(
        "w", pa.array([[0.5] * (k % 3) for k in key.tolist()], pa.list_(pa.float32()))
    )
    kinds = {"bag": Column(kind="ids", num_ids=50), "w": Column(kind="numbers")}
    features = {**FEATURES, "sparse": ["item", {"name": "bag", "weights": "w"}]}
    directory = small.write_table(tmp_path, table, **kinds)
    reader = small.reader(directory, features=features, lanes=1, global_batch_size=8)
    batch, _ = next(reader.epoch())
    field = batch.sparse["cost::b3"]
    values = [k / 2 for k in batch.group.tolist()]
    assert field.values().tolist() == expected("cost", SHIFTED, 3, values)
    assert set(field.weights().tolist()) == {1.0}
    assert set(batch.sparse["bag"].weights().tolist()) == {0.5}


def test_whole_numbers_keep_their_last_digit(tmp_path: Path) -> None:
    """float32 has no 16,777,217."""
    encoding = {"kind": "mnse", "quantiser": "count", "low": 16_777_200.0, "high": 16_777_300.0}
    features = {**FEATURES, "dense": [], "numbers": [{"name": "price", "encoding": encoding}]}
    values = pa.array([16_777_216, 16_777_217, 16_777_218, 16_777_300], pa.int64())
    reader = small.reader(data(tmp_path, values), features=features, lanes=1, global_batch_size=4)
    batch, _ = next(reader.epoch())
    last = batch.sparse["price::b10"].values().reshape(4, -1)[:, 0].tolist()
    assert last == [6, 7, 8, 0]


def test_numbers_need_a_column_of_numbers(tmp_path: Path) -> None:
    features = {**FEATURES, "numbers": [{**FEATURES["numbers"][0], "column": "item"}]}
    with pytest.raises(UserError, match=r"features.numbers\[0\]: column 'item' .* kind 'id', but"):
        small.reader(data(tmp_path), features=features)


def test_tables_have_the_rows_of_all_their_numbers(tmp_path: Path) -> None:
    recipe = small.recipe(data(tmp_path), features=FEATURES)
    tables = number_tables(recipe)
    rows = {name: table.rows.total for name, table in tables.items()}
    assert rows == {
        "mnse_b2": num_rows(SHIFTED, 2) + num_rows(SIGNED, 2),
        "mnse_b3": num_rows(SHIFTED, 3),
        "mnse_b10": num_rows(SHIFTED, 10),
        "mnse_b5": num_rows(SIGNED, 5),
    }
    shared = [{**each, "share": "money"} for each in FEATURES["numbers"][:1]]
    shared.append({**shared[0], "name": "fee"})
    recipe = small.recipe(tmp_path, features={**FEATURES, "numbers": shared})
    assert number_tables(recipe)["mnse_b2"].rows.total == num_rows(SHIFTED, 2)
    encoders = encoders_of(recipe, open_data(tmp_path).schema)
    codes = np.array([5, 9])
    assert encoders["cost::b2"](codes)[0].tolist() == encoders["fee::b2"](codes)[0].tolist()


def test_rows_of_numbers_are_alike_only_where_they_stand_for_the_same(tmp_path: Path) -> None:
    path = data(tmp_path)
    schema = open_data(path).schema

    def ids(features: dict[str, Any]) -> TableIds:
        return TableIds(encoded_tables(small.recipe(path, features=features), schema))

    same, fewer = ids(FEATURES), ids({**FEATURES, "numbers": FEATURES["numbers"][:1]})
    alignment, _ = align((ids(FEATURES), "mnse_b2"), (same, "mnse_b2"))
    assert alignment is not None
    assert alignment(3, 6).tolist() == [3, 4, 5]
    assert align((same, "mnse_b3"), (fewer, "mnse_b3"))[0] is not None
    assert align((same, "mnse_b2"), (fewer, "mnse_b2"))[0] is None
    assert align((same, "mnse_b2"), (same, "item")) == (
        None,
        "ids are 'number' here and 'direct' there",
    )


def test_a_mean_of_digits_is_refused(tmp_path: Path) -> None:
    from prismrec.models import spec_of

    recipe = small.recipe(data(tmp_path), features=FEATURES)
    sets = [{"name": "means", "dim": 4, "pooling": "mean"}]
    section = recipe.embedding.model_validate({"sets": sets})
    recipe = recipe.model_copy(update={"embedding": section})
    with pytest.raises(
        UserError,
        match=r"in table 'mnse_b2' a number's vector is the sum of 8 rows, which the mean",
    ):
        spec_of(recipe, open_data(tmp_path).schema)


def test_a_sum_of_digits_begins_with_the_deviation_that_is_asked_for(tmp_path: Path) -> None:
    from prismrec.models import spec_of
    from tests.helpers.tables import whole_tables

    recipe = small.recipe(data(tmp_path), features=FEATURES)
    spec = spec_of(recipe, open_data(tmp_path).schema)
    tables = whole_tables(spec)
    for base, width in ((2, 6), (3, 4), (10, 2)):
        weight = tables[f"mnse_b{base}/set0"]
        digits = weight[: (base + 1) * width]
        limit = 0.05 * (3 / width) ** 0.5
        assert digits.abs().max() <= limit
        assert digits.abs().max() > 0.95 * limit
        assert digits.std() == pytest.approx(0.05 / width**0.5, rel=0.08)
        assert not weight[(base + 1) * width : (base + 1) * width + 8].any()
    assert tables["mnse_b2/set0"].unique(dim=0).shape[0] == tables["mnse_b2/set0"].shape[0] - 15
    assert torch.equal(whole_tables(spec)["mnse_b2/set0"], tables["mnse_b2/set0"])
