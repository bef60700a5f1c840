"""Infinite numbers in the data: an error that names them, or missing values."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.data.encode.tables import encoders_of
from prismrec.data.reader import Reader
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from tests.unit.data import small

ROWS = 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Row 9 has an infinite price, row 12 one too large for float32, row 3 none; 10 a bag's weight."""
    rows = small.table(0, ROWS)
    price = [each / 2 for each in range(ROWS)]
    price[3], price[9], price[12] = None, float("inf"), -1e300  # type: ignore[call-overload]
    strength = [[1.0, 2.0]] * ROWS
    strength[10] = [1.0, float("-inf")]
    rows = rows.set_column(rows.column_names.index("price"), "price", pa.array(price, pa.float64()))
    rows = rows.append_column("seen", pa.array([[1, 2]] * ROWS))
    rows = rows.append_column("strength", pa.array(strength))
    more = {"seen": Column(kind="ids", num_ids=5), "strength": Column(kind="numbers")}
    return small.write_table(tmp_path / "rows", rows, **more)


def read(data: Path, policy: str, *, bag: bool) -> Reader:
    bags = [{"name": "seen", "weights": "strength"}] if bag else []
    features = {"sparse": ["item", *bags], "dense": [] if bag else ["price"]}
    recipe = small.recipe(data, features=features)
    train = recipe.train.model_copy(update={"on_nonfinite": policy})
    recipe = recipe.model_copy(update={"train": train})
    source = open_data(data)
    return Reader(source, recipe, "train", encoders_of(recipe, source.schema), training=True)


def test_stop_names_file_row_and_column(data: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"part-0\.parquet: row group 1, row 2: column 'price' holds inf, or a number too large",
    ):
        list(read(data, "stop", bag=False).epoch())
    with pytest.raises(UserError, match=r"row group 1, row 3: column 'strength' holds -inf"):
        list(read(data, "stop", bag=True).epoch())


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_otherwise_it_reads_as_missing_and_is_counted(data: Path, policy: str) -> None:
    reader = read(data, policy, bag=False)
    found = {
        int(key): float(x)
        for batch, _ in reader.epoch()
        for key, x, w in zip(batch.group, batch.dense[:, 0], batch.weights[:, 0], strict=True)
        if w
    }
    assert found == {k: 0.0 if k in (3, 9, 12) else k / 2 for k in range(ROWS)}
    assert reader.missing_values == {"price": 3}
    weights = [
        w for b, _ in read(data, policy, bag=True).epoch() for w in b.sparse["seen"].weights()
    ]
    assert sorted({float(each) for each in weights}) == [0.0, 1.0, 2.0]
