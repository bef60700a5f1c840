"""The collection on CPU, unsharded, against sums of rows written out by hand.

The number in row r, column c of set m of the k-th table is 1000 k + 100 m + 10 r + c.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.collection import SetViews, build_collection, physical_tables
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec

SETS = (EmbeddingSet("wide", 8, 0.1), EmbeddingSet("narrow", 4, 0.1))
TABLES = ("user", "items")
BAGS = {"item": [[2], [0]], "user": [[1], [3]], "history": [[0, 2, 2], []]}
"""Bags of two rows; `item` and `history` look `items` up, `user` its own table."""

LAYOUTS = [
    ("packed", "packed"),
    ("separate", "separate"),
    ("packed", "separate"),
    ("separate", "packed"),
]


def _spec(layouts: tuple[str, str], pooling: str = "sum") -> EmbeddingSpec:
    user, items = (
        TableSpec(name, rows, features, pooling, layout, "auto", TableOptimizer())
        for name, rows, features, layout in zip(
            TABLES, (5, 4), (("user",), ("item", "history")), layouts, strict=True
        )
    )
    return EmbeddingSpec(SETS, (user, items), ("item", "user", "history"), "fp32")


def _row(table: str, m: int, row: int) -> Tensor:
    return 1000 * TABLES.index(table) + 100 * m + 10 * row + torch.arange(8.0)


def _lookup(spec: EmbeddingSpec, weights: Tensor | None = None) -> list[Tensor]:
    collection = build_collection(spec, torch.device("cpu"))
    names = [each.name for each in spec.sets]
    with torch.no_grad():
        for physical in physical_tables(spec):
            weight = collection.embedding_bags[physical.name].weight
            for name, (start, stop) in physical.slices.items():
                m = names.index(name)
                for row in range(physical.table.rows):
                    weight[row, start:stop] = _row(physical.table.name, m, row)[: stop - start]
    bags = [bag for field in spec.fields for bag in BAGS[field]]
    ids = KeyedJaggedTensor.from_lengths_sync(
        list(spec.fields),
        torch.tensor([each for bag in bags for each in bag]),
        torch.tensor([len(bag) for bag in bags], dtype=torch.int32),
        weights=weights,
    )
    return SetViews(spec)(collection(ids))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_every_set_has_the_pooled_rows_of_every_field(layouts: tuple[str, str]) -> None:
    sets = _lookup(_spec(layouts))
    assert [x.shape for x in sets] == [(2, 3, 8), (2, 3, 4)]
    # wide: item 2, user 1, history 0 + 2 + 2; the second row's history is empty
    columns = torch.arange(8.0)
    assert torch.equal(sets[0][0, 0], 1020 + columns)
    assert torch.equal(sets[0][0, 1], 10 + columns)
    assert torch.equal(sets[0][0, 2], 3040 + 3 * columns)
    assert torch.equal(sets[0][1, 0], 1000 + columns)
    assert torch.equal(sets[0][1, 1], 30 + columns)
    assert torch.equal(sets[0][1, 2], torch.zeros(8))
    # narrow: each row 100 more
    columns = torch.arange(4.0)
    assert torch.equal(sets[1][0], torch.stack([1120 + columns, 110 + columns, 3340 + 3 * columns]))
    assert torch.equal(sets[1][1], torch.stack([1100 + columns, 130 + columns, 0 * columns]))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_means(layouts: tuple[str, str]) -> None:
    sets = _lookup(_spec(layouts, "mean"))
    torch.testing.assert_close(sets[0][0, 2], 1000 + 40 / 3 + torch.arange(8.0))
    assert torch.equal(sets[1][1, 2], torch.zeros(4))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_weights(layouts: tuple[str, str]) -> None:
    spec = replace(_spec(layouts), is_weighted=True)
    # ids in field order: item 2, 0; user 1, 3; history 0, 2, 2
    sets = _lookup(spec, torch.tensor([2.0, 1, 1, 1, 1, 0.5, 0]))
    assert torch.equal(sets[1][0, 0], 2 * (1120 + torch.arange(4.0)))
    assert torch.equal(sets[1][0, 2], 1.5 * torch.arange(4.0) + 1100 + 0.5 * 1120)


def test_packed_sets_are_views_of_the_output_where_tables_are_in_field_order() -> None:
    wide, narrow = _lookup(replace(_spec(LAYOUTS[0]), fields=("user", "item", "history")))
    # 8 + 4 columns for each of user, item, history
    assert (wide.storage_offset(), wide.stride()) == (0, (36, 12, 1))
    assert (narrow.storage_offset(), narrow.stride()) == (8, (36, 12, 1))
    assert wide.untyped_storage().data_ptr() == narrow.untyped_storage().data_ptr()


def test_a_set_of_some_fields_has_those_fields_only() -> None:
    spec = _spec(("packed", "packed"))
    narrow = replace(SETS[1], features=("history", "user"))
    sets = _lookup(replace(spec, sets=(SETS[0], narrow)))
    assert torch.equal(sets[1][0], torch.stack([110 + (c := torch.arange(4.0)), 3340 + 3 * c]))
    # `items` is packed with both sets and looked up by `item` too, whose narrow part goes nowhere
    assert torch.equal(sets[0][0, 0], 1020 + torch.arange(8.0))


@pytest.mark.parametrize("name", ["items", "keys", "values", "weight"])
def test_a_table_may_have_the_name_of_a_method(name: str) -> None:
    spec = _spec(("packed", "separate"))
    user, items = spec.tables
    spec = replace(spec, tables=(user, replace(items, name=name)))
    keys = [key for key, _ in build_collection(spec, torch.device("meta")).named_parameters()]
    assert set(keys) == {
        "embedding_bags.t_user.weight",
        f"embedding_bags.t_{name}__wide.weight",
        f"embedding_bags.t_{name}__narrow.weight",
    }
