"""Tables that behaviours look up: what they are made of, and their vectors by set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.config import UserError
from prismrec.data.source import open_data
from prismrec.embeddings.collection import (
    SetViews,
    build_collection,
    physical_tables,
    side_by_side,
)
from prismrec.embeddings.plan import Placement
from prismrec.embeddings.plan.find import find_plan
from prismrec.embeddings.plan.rules import check_ways, impossible_kinds
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.unpooled import UnpooledViews, build_unpooled, unpooled_tables
from prismrec.models import spec_of
from tests.helpers.histories import make_recipe, write_histories


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_histories(tmp_path_factory.mktemp("unpooled") / "rows")


def spec(data: Path, *overrides: str) -> EmbeddingSpec:
    return spec_of(make_recipe(data, *overrides), open_data(str(data)).schema)


def test_first_order_weights_lie_apart_from_what_behaviours_look_up(data: Path) -> None:
    tables = {each.name: each for each in physical_tables(spec(data))}
    assert set(tables) == {
        "t_user",
        "t_item__wide",
        "t_item__linear",
        "t_category__wide",
        "t_category__linear",
    }
    assert tables["t_item__wide"].slices == {"wide": (0, 8), "narrow": (8, 12)}
    assert tables["t_item__wide"].behaviours == ("history/items",)
    assert tables["t_item__linear"].behaviours == ()
    assert tables["t_user"].is_pooled
    assert not tables["t_item__linear"].is_pooled


def test_a_set_that_does_not_cover_the_target_is_not_looked_up(data: Path) -> None:
    sets = "[{name='a', dim=8, features=['user', 'item']}, {name='b', dim=4, features=['user', 'category']}]"
    tables = {each.name: each for each in physical_tables(spec(data, f"embedding.sets={sets}"))}
    assert tables["t_item__a"].behaviours == ("history/items",)
    assert tables["t_category__b"].behaviours == ("history/categories",)


def test_tables_of_one_width_and_type_are_one_collection(data: Path) -> None:
    names = [[each.name for each in group] for group in unpooled_tables(spec(data))]
    assert names == [
        ["t_item__wide", "t_category__wide"],
        ["t_item__linear", "t_category__linear"],
    ]
    half = spec(data, "embedding.tables.item.data_type='fp16'")
    assert [len(group) for group in unpooled_tables(half)] == [1, 1, 1, 1]


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("hashes", [1, 2])
def test_vectors_by_set(data: Path, layout: str, hashes: int) -> None:
    """Against rows picked one by one."""
    table = f"embedding.tables.item={{ids={{kind='hash', hashes={hashes}}}, rows=11}}"
    of = spec(data, f"embedding.layout='{layout}'", "model.name='dnn'", table)
    collections, views = build_unpooled(of, torch.device("cpu")), UnpooledViews(of)
    weights = {}
    for collection in collections:
        for name, parameter in collection.named_parameters():
            weights[name.split(".")[1]] = parameter.detach()
    item, category = [[3], [5], [0]], [[1], [0], [6]]
    items, categories = [[1, 2], [], [4]], [[0, 2], [], [3]]
    if hashes == 2:  # an id has the row of its number and the next
        item, items = (
            [[row for i in bag for row in (i, i + 1)] for bag in bags] for bags in (item, items)
        )
    lists = [item, category, items, categories, [[7, 8], [], [9]]]
    ids = KeyedJaggedTensor.from_lengths_sync(
        ["item", "category", "history/items", "history/categories", "history/"],
        torch.tensor([i for bags in lists for bag in bags for i in bag]),
        torch.tensor([len(bag) for bags in lists for bag in bags]),
    )
    looked_up = [collection(ids) for collection in collections]
    (sequence,) = views.sequences(looked_up, ids)
    assert sequence.offsets.tolist() == [0, 2, 2, 3]
    assert sequence.positions.tolist() == [2, 1, 1]
    assert sequence.intervals is not None
    assert sequence.intervals.tolist() == [7, 8, 9]

    def vector(name: str, of_set: str, rows: list[int]) -> torch.Tensor:
        physical = next(
            p for p in physical_tables(of) if p.table.name == name and of_set in p.slices
        )
        low, high = physical.slices[of_set]
        return weights[physical.name][rows, low:high].sum(0)

    for of_set, found in zip(("wide", "narrow"), sequence.behaviours, strict=True):
        at = 0
        for item_bag, category_bag in zip(items, categories, strict=True):
            for place, row in enumerate(category_bag):
                rows = item_bag[hashes * place : hashes * (place + 1)]
                expected = torch.cat(
                    [vector("item", of_set, rows), vector("category", of_set, [row])]
                )
                torch.testing.assert_close(found[at], expected)
                at += 1
        assert at == len(found)
    features = views.features(looked_up)
    pooled = features.to_dict()
    first = next(key for key in pooled if key.partition("@")[0] == "item")
    torch.testing.assert_close(pooled[first][1, :8], vector("item", "wide", item[1]))


def test_kinds_that_cannot_leave_vectors_apart(data: Path) -> None:
    of = spec(data)
    placement = Placement(2, 2, "cpu", 1 << 30, 8)
    tables = {each.name: each for each in physical_tables(of)}
    refused = impossible_kinds(tables["t_item__wide"], of, placement)
    assert set(refused) == {"table_row_wise", "table_column_wise", "grid"}
    assert not impossible_kinds(tables["t_user"], of, placement)
    wrong = [replace(each, sharding="grid") if each.name == "item" else each for each in of.tables]
    with pytest.raises(
        UserError, match="sharding = 'grid' is not possible .* a sequence looks the table"
    ):
        check_ways(replace(of, tables=tuple(wrong)), placement)


def test_all_tables_of_a_collection_are_cut_into_equal_strips_of_columns(data: Path) -> None:
    of = spec(data, "embedding.sharding='column_wise'")
    lines = find_plan(of, Placement(2, 2, "cpu", 1 << 30, 8)).lines()
    strips = {line["table"]: [strip[1] for strip in line["strips"]] for line in lines}
    assert (
        strips["item__wide"] == strips["category__wide"] == [12]
    )  # three units of 4 for two ranks
    of = spec(data, "embedding.sharding='column_wise'", "embedding.sets=[{name='a', dim=16}]")
    lines = find_plan(of, Placement(2, 2, "cpu", 1 << 30, 8)).lines()
    strips = {line["table"]: [strip[1] for strip in line["strips"]] for line in lines}
    assert strips["item__a"] == strips["category__a"] == [8, 8]


def test_a_longer_history_costs_more(data: Path) -> None:
    def milliseconds(most: int) -> float:
        of = spec(data)
        longer = [
            replace(t, behaviours=tuple(replace(b, most=most) for b in t.behaviours))
            for t in of.tables
        ]
        lines = find_plan(
            replace(of, tables=tuple(longer)), Placement(2, 2, "cpu", 1 << 30, 512)
        ).lines()
        return next(line["milliseconds"] for line in lines if line["table"] == "item__wide")

    assert milliseconds(200) > 5 * milliseconds(2)


def test_targets_stand_among_the_pooled_fields_of_every_set(data: Path) -> None:
    of, cpu = spec(data), torch.device("cpu")
    unpooled, pooling = build_unpooled(of, cpu), build_collection(of, cpu)
    ids = {"user": 5, "item": 1, "category": 2, "history/items": 3, "history/categories": 4}

    def kjt(*keys: str) -> KeyedJaggedTensor:
        values = torch.tensor([ids[key] for key in keys])
        return KeyedJaggedTensor.from_lengths_sync(list(keys), values, torch.ones_like(values))

    looked_up = [each(kjt(*list(ids)[1:])) for each in unpooled]
    features = UnpooledViews(of).features(looked_up)
    wide, narrow, linear = SetViews(of)(side_by_side([pooling(kjt("user")), features]))
    weights = {
        name.split(".")[-2]: parameter
        for module in (pooling, unpooled)
        for name, parameter in module.named_parameters()
    }
    assert torch.equal(wide[0, 0], weights["t_user"][5, :8])
    assert torch.equal(wide[0, 1], weights["t_item__wide"][1, :8])
    assert torch.equal(narrow[0, 2], weights["t_category__wide"][2, 8:])
    assert torch.equal(linear[0, 2], weights["t_category__linear"][2])
