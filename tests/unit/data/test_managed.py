"""Batches of recipes with managed tables: codes apart from rows, in the order of the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.data.batch import Batch
from prismrec.data.encode.codes import missing_code, raw_ids
from prismrec.data.encode.tables import encoders_of
from prismrec.data.reader import Reader
from prismrec.data.source import open_data
from tests.helpers.runs import LANES, NUM_ITEMS, NUM_USERS, make_recipe, write_rows

MANAGED = "{rows=50, ids='managed'}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("managed") / "rows")


def reader_of(rows: Path, *overrides: str) -> Reader:
    recipe, source = make_recipe(rows, *overrides), open_data(rows)
    return Reader(source, recipe, "valid", encoders_of(recipe, source.schema))


def batches(reader: Reader) -> list[Batch]:
    return [batch for batch, _ in reader.epoch()]


def ids_of(codes: KeyedJaggedTensor, feature: str) -> list[int | None]:
    values = codes[feature].values().numpy()
    missing = values == missing_code(LANES)
    return [None if m else int(i) for m, i in zip(missing, raw_ids(values), strict=True)]


@pytest.mark.parametrize("sparse", [None, "['user', 'item', 'tab']"], ids=["bags", "singles"])
def test_managed_features_come_as_codes_and_the_others_as_before(
    rows: Path, sparse: str | None
) -> None:
    chosen = [] if sparse is None else [f"features.sparse={sparse}"]
    plain = batches(reader_of(rows, *chosen))
    reader = reader_of(rows, *chosen, f"embedding.tables.item={MANAGED}")
    mixed = batches(reader)
    assert len(plain) == len(mixed)
    names = ["item", "seen"] if sparse is None else ["item"]
    for before, after in zip(plain, mixed, strict=True):
        assert before.managed is None
        assert after.managed is not None
        assert after.managed.keys() == names
        assert after.sparse.keys() == [k for k in before.sparse.keys() if k not in names]
        for key in after.sparse.keys():
            assert after.sparse[key].values().tolist() == before.sparse[key].values().tolist()
            assert after.sparse[key].lengths().tolist() == before.sparse[key].lengths().tolist()
        for key in names:
            was, now = before.sparse[key], after.managed[key]
            assert now.lengths().tolist() == was.lengths().tolist()
            assert (now.weights_or_none() is None) == (was.weights_or_none() is None)
            for row, known in zip(was.values().tolist(), ids_of(after.managed, key), strict=True):
                if row < NUM_ITEMS:
                    assert known == row
                else:  # missing, negative or too large
                    assert known in (None, 2**63 - 3, NUM_ITEMS)
        assert after.managed.stride() == before.num_rows
    assert (
        list(reader.unknown_ids)
        == [key for key in [*plain[0].sparse.keys()] if key not in names] + names
    )


def test_weights_of_bags_go_with_their_codes(rows: Path) -> None:
    plain = batches(reader_of(rows))
    managed = batches(reader_of(rows, f"embedding.tables.tags={MANAGED}"))
    for before, after in zip(plain, managed, strict=True):
        assert after.managed is not None
        assert np.array_equal(after.managed["tags"].weights(), before.sparse["tags"].weights())
        assert after.managed["tags"].values().tolist() != before.sparse["tags"].values().tolist()


def test_only_missing_ids_count_as_unknown(rows: Path) -> None:
    reader = reader_of(rows, f"embedding.tables.user={MANAGED}")
    seen = [each for batch in batches(reader) for each in ids_of(batch.managed, "user")]
    assert reader.unknown_ids["user"] == seen[: reader.num_rows].count(None) > 0
    assert {each for each in seen if each is not None} <= set(range(NUM_USERS))


def test_every_feature_may_be_managed(rows: Path) -> None:
    tables = [f"embedding.tables.{name}={MANAGED}" for name in ("user", "item", "tags")]
    for batch in batches(reader_of(rows, *tables)):
        assert batch.managed is not None
        assert batch.sparse.keys() == []
        assert batch.managed.keys() == ["user", "item", "tags", "seen"]
        moved = batch.to(batch.labels.device)
        assert moved.managed is not None
        assert moved.managed.values().tolist() == batch.managed.values().tolist()
