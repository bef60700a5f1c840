from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prismrec.config import UserError
from prismrec.data.batch import Batch
from prismrec.data.schema import Column
from tests.unit.data import small

IDS = Column(kind="ids", num_ids=10)
ONE = {"lanes": 1, "global_batch_size": 4, "features": {"group": None, "time": None}}


def first(directory: Path, **data: Any) -> Batch:
    batch, _ = next(small.reader(directory, **{**ONE, **data}).epoch())
    return batch


def rows(**columns: Any) -> pa.Table:
    click = {"click": pa.array([1, 0, 0, 1], pa.int8())} if "click" not in columns else {}
    return pa.table({"item": [1, 2, 3, 4], "price": [1.0, 2.0, 3.0, 4.0], **click, **columns})


def test_columns_become_a_batch(tmp_path: Path) -> None:
    batch, _ = next(small.reader(small.write(tmp_path, [4]), lanes=1, global_batch_size=4).epoch())
    assert batch.sparse.keys() == ["item"]
    assert batch.sparse.values().tolist() == [0, 1, 2, 3]
    assert batch.sparse.lengths().tolist() == [1, 1, 1, 1]
    assert batch.sparse.weights_or_none() is None
    assert batch.dense.tolist() == [[0.0], [0.5], [1.0], [1.5]]
    assert batch.labels.tolist() == [[1.0], [0.0], [0.0], [1.0]]
    assert batch.valid.tolist() == batch.weights.tolist() == [[1.0]] * 4
    assert batch.group.tolist() == [0, 1, 2, 3]
    assert batch.time.tolist() == [0, 10, 20, 30]
    assert batch.domain.tolist() == [0, 0, 0, 0]


def test_unknown_ids_and_missing_values_are_replaced_and_counted(tmp_path: Path) -> None:
    table = rows(item=pa.array([None, -1, 50, 49]), price=pa.array([None, float("nan"), 3.0, 4.0]))
    directory = small.write_table(tmp_path, table)
    reader = small.reader(directory, **ONE)
    batch, _ = next(reader.epoch())
    assert batch.sparse.values().tolist() == [50, 50, 50, 49]
    assert batch.dense[:, 0].tolist() == [0.0, 0.0, 3.0, 4.0]
    assert reader.unknown_ids == {"item": 3}
    assert reader.missing_ids == {"item": 1}
    assert reader.missing_values == {"price": 2}


def test_padding_is_not_counted_as_unknown(tmp_path: Path) -> None:
    directory = small.write_table(tmp_path, rows(item=pa.array([1, 2, 3, None])))
    reader = small.reader(directory, **{**ONE, "global_batch_size": 3})
    last = [batch for batch, _ in reader.epoch()][-1]
    assert last.sparse.values().tolist() == [50, 50, 50]
    assert reader.unknown_ids == {"item": 1}
    assert reader.missing_ids == {"item": 1}


def test_hashed_ids_take_any_value_but_null(tmp_path: Path) -> None:
    directory = small.write_table(tmp_path, rows(item=pa.array([-7, 10**15, None, 10**15])))
    batch = first(directory, tables={"item": {"ids": "hash", "rows": 50}})
    values = batch.sparse.values().tolist()
    assert values[2] == 50
    assert values[1] == values[3] < 50
    assert 0 <= values[0] < 50


def test_an_id_that_is_no_row_ends_the_run_where_the_recipe_says_so(tmp_path: Path) -> None:
    strict = {"ids": {"kind": "direct", "out_of_range": "fail"}}
    key, bags = list(range(12)), [[1], [], [9, 3, None], *[[]] * 9]
    item = [0, None, 49, *range(9)]
    table = pa.table({"item": item, "key": key, "click": [0, 1] * 6, "price": [1.0] * 12})
    table = table.append_column("tags", pa.array(bags, pa.list_(pa.int64())))
    kinds = {"tags": IDS, "key": Column(kind="other")}
    features = {"sparse": ["item", "tags"], "group": None, "time": None}
    options = {**ONE, "features": features, "tables": {"item": strict, "tags": strict}}
    batch = first(small.write_table(tmp_path / "right", table, **kinds), **options)
    assert batch.sparse["item"].values().tolist() == [0, 50, 49, 0]

    def wrong(name: str, column: str, values: list[Any]) -> Path:
        type_ = table.schema.field(column).type
        at = table.column_names.index(column)
        changed = table.set_column(at, column, pa.array(values, type_))
        return small.write_table(tmp_path / name, changed, **kinds)

    # Row groups have 7 rows: row 9 of the file is row 2 of group 1.
    late = wrong("late", "item", [*item[:9], 50, *item[10:]])
    for conditions in ([], ["key != 8"]):
        with pytest.raises(
            UserError,
            match=r"part-0.parquet: row group 1, row 2: feature 'item': column 'item' holds id 50, "
            r"but its table has rows for 0 to 49 only",
        ):
            list(small.reader(late, **options, splits={"train": conditions}).epoch())
    list(small.reader(late, **options, splits={"train": ["key != 9"]}).epoch())
    negative = wrong("negative", "tags", [[1], [], [9, -1], *bags[3:]])
    with pytest.raises(UserError, match=r"row group 0, row 2: feature 'tags': .* holds id -1, but"):
        first(negative, **options)
    assert first(negative, **{**options, "tables": {}}).sparse["tags"].values().tolist()[2:] == [10]


def test_ids_with_two_rows_are_bags_of_them(tmp_path: Path) -> None:
    """Quotient and remainder by 4: rows 0 to 12 and 13 to 16, then one for unknown ids."""
    key = np.arange(23)
    bags = [[k, 49 - k] if k % 3 else [] for k in key.tolist()]
    weights = [[float(k), 0.5] if k % 3 else [] for k in key.tolist()]
    table = small.table(0, 23).append_column("bag", pa.array(bags, pa.list_(pa.int64())))
    table = table.append_column("w", pa.array(weights, pa.list_(pa.float32())))
    kinds = {"bag": Column(kind="ids", num_ids=50), "w": Column(kind="numbers")}
    directory = small.write_table(tmp_path, table, **kinds)
    two = {"ids": {"kind": "quotient_remainder", "divisor": 4}}
    bag = {"name": "bag", "table": "item", "weights": "w"}
    last = {"name": "plain", "column": "item", "table": "plain"}
    for sparse in (["item", last], [bag, "item", last]):
        reader = small.reader(
            directory, features={"sparse": sparse}, tables={"item": two}, order="shuffle"
        )
        seen = []
        for batch, _ in reader.epoch():
            items, plain = batch.sparse["item"], batch.sparse["plain"]
            assert items.lengths().tolist() == [2] * batch.num_rows
            group = batch.group.tolist()
            assert items.values().tolist() == [r for k in group for r in (k // 4, 13 + k % 4)]
            assert plain.values().tolist() == group
            if len(sparse) == 3:
                of_bag = batch.sparse["bag"].to_dense()
                of_weights = batch.sparse["bag"].to_dense_weights()
                for row, k in enumerate(group):
                    rows_ = [r for i in bags[k] for r in (i // 4, 13 + i % 4)]
                    assert of_bag[row].tolist() == rows_
                    assert of_weights[row].tolist() == [w for w in weights[k] for _ in range(2)]
                assert items.weights().tolist() == [1.0] * 2 * batch.num_rows
            seen += batch.group[batch.weights[:, 0] > 0].tolist()
        assert sorted(seen) == key.tolist()
        assert reader.seen_ids["item"] == 23
        assert reader.seen_ids.get("bag", 30) == sum(len(each) for each in bags)
        assert set(reader.unknown_ids.values()) == {0}


@pytest.mark.parametrize("order", ["file", "shuffle"])
def test_bags_keep_order_and_duplicates(tmp_path: Path, order: str) -> None:
    bags = [[3, 3, 1], [], None, [7, 99, None]]
    directory = small.write_table(
        tmp_path, rows(key=range(4), tags=pa.array(bags, pa.list_(pa.int32()))), tags=IDS
    )
    features = {"sparse": ["item", {"name": "tags", "table": "item"}], "group": "key", "time": None}
    reader = small.reader(directory, **{**ONE, "order": order, "features": features})
    batch, _ = next(reader.epoch())
    assert batch.sparse.keys() == ["item", "tags"]
    tags = batch.sparse["tags"]
    known = [[3, 3, 1], [], [], [7, 50, 50]]
    known[3][1] = 50
    expected = [known[key] for key in batch.group.tolist()]
    assert tags.lengths().tolist() == [len(bag) for bag in expected]
    assert tags.values().tolist() == sum(expected, [])
    assert batch.sparse["item"].values().tolist() == [key + 1 for key in batch.group.tolist()]
    assert reader.unknown_ids == {"item": 0, "tags": 2}


@pytest.mark.parametrize(("order", "world_size"), [("file", 1), ("shuffle", 2), ("time", 2)])
def test_bags_of_many_steps_and_lanes_stay_with_their_rows(
    tmp_path: Path, order: str, world_size: int
) -> None:
    key = np.arange(101)
    bags = [[k % 7] * (k % 4) for k in key.tolist()]
    weights = [[float(k)] * (k % 4) for k in key.tolist()]
    table = small.table(0, 101).append_column("tags", pa.array(bags, pa.list_(pa.int64())))
    table = table.append_column("strength", pa.array(weights, pa.list_(pa.float32())))
    kinds = {"tags": IDS, "strength": Column(kind="numbers")}
    directory = small.write_table(tmp_path, table, **kinds)
    features = {"sparse": [{"name": "tags", "weights": "strength"}, "item"]}
    seen = []
    for rank in range(world_size):
        reader = small.reader(directory, rank, world_size, order=order, features=features)
        for batch, _ in reader.epoch():
            tags, item = batch.sparse["tags"].to_dense(), batch.sparse["item"]
            strength = batch.sparse["tags"].to_dense_weights()
            assert item.values().tolist() == (batch.group % 50).tolist()
            assert item.weights().tolist() == [1.0] * batch.num_rows
            for row, k in enumerate(batch.group.tolist()):
                assert tags[row].tolist() == bags[k]
                assert strength[row].tolist() == weights[k]
            seen += batch.group[batch.weights[:, 0] > 0].tolist()
    assert sorted(seen) == key.tolist()


def test_weights_must_be_parallel_to_their_ids(tmp_path: Path) -> None:
    tags = pa.array([[1], [2, 3], [], [4]], pa.list_(pa.int64()))
    weights = pa.array([[1.0], [0.5], [], [2.0]], pa.list_(pa.float32()))
    kinds = {"tags": IDS, "w": Column(kind="numbers")}
    directory = small.write_table(tmp_path, rows(tags=tags, w=weights), **kinds)
    sparse = [{"name": "tags", "weights": "w"}]
    features = {"sparse": sparse, "group": None, "time": None}
    with pytest.raises(
        UserError, match="row group 0, row 1: column 'w' has 1 weights for the 2 ids"
    ):
        first(directory, features=features)
    features["sparse"] = [{"name": "item", "weights": "w"}]
    with pytest.raises(UserError, match="weights belong to a column of kind 'ids'"):
        first(directory, features=features)


def test_a_missing_label_is_not_valid_and_a_sample_space_multiplies(tmp_path: Path) -> None:
    click, buy = pa.array([1, 0, None, 1], pa.int8()), pa.array([1.0, None, 1.0, 0.0])
    directory = small.write_table(tmp_path, rows(click=click, buy=buy), buy=Column(kind="label"))
    tasks = [
        {"name": "click", "label": "click"},
        {"name": "buy", "label": "buy", "valid": "click"},
    ]
    batch = first(directory, tasks=tasks)
    assert batch.labels.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    assert batch.valid.tolist() == [[1, 1], [1, 0], [0, 0], [1, 1]]
    assert batch.weights.tolist() == [[1, 1]] * 4


@pytest.mark.parametrize("wrong", [2.0, 0.5, -1.0])
def test_a_label_that_is_neither_0_nor_1_is_shown(tmp_path: Path, wrong: float) -> None:
    directory = small.write_table(tmp_path, rows(click=[0.0, 1.0, wrong, None]))
    with pytest.raises(
        UserError, match=rf"part-0\.parquet: row group 0: column 'click' holds {wrong:g};"
    ):
        first(directory)


@pytest.mark.parametrize("split", [[], ["key >= 3"]])
def test_a_label_that_is_null_everywhere(tmp_path: Path, split: list[str]) -> None:
    click = pa.array([1, 1, 1] + [None] * 17 if split else [None] * 20, pa.int8())
    directory = small.write_table(tmp_path, small.table(0, 20).set_column(3, "click", click))
    with pytest.raises(UserError, match="column 'click': the label is null in all"):
        small.reader(directory, splits={"train": split})
    if split:
        small.reader(directory, splits={"train": ["key >= 2"]})


def test_negatives_are_sampled_in_training_only_and_always_alike(tmp_path: Path) -> None:
    directory = small.write(tmp_path, [3000, 3000], group_rows=500)
    tasks = [{"name": "click", "label": "click", "negative_rate": 0.25}]

    def valid(world_size: int = 1, **more: Any) -> dict[int, float]:
        found = {}
        for rank in range(world_size):
            for batch, _ in small.reader(directory, rank, world_size, tasks=tasks, **more).epoch():
                real = batch.weights[:, 0] > 0
                keys = batch.group[real].tolist()
                found |= dict(zip(keys, batch.valid[real, 0].tolist(), strict=True))
        return found

    kept = valid()
    assert sorted(kept) == list(range(6000))
    assert all(kept[key] == 1 for key in range(0, 6000, 3))
    negatives = [kept[key] for key in range(6000) if key % 3]
    assert abs(np.mean(negatives) - 0.25) < 0.03
    assert valid(2, order="shuffle") == kept
    narrow = valid(splits={"train": ["key >= 100"]})
    assert narrow == {key: value for key, value in kept.items() if key >= 100}
    assert valid(seed=2) != kept
    assert set(valid(training=False).values()) == {1.0}


def test_keys_may_be_null_and_domains_any_integer(tmp_path: Path) -> None:
    table = rows(tab=pa.array([3, None, 0, 1], pa.int8()))
    directory = small.write_table(tmp_path, table, tab=Column(kind="id", num_ids=4))
    batch = first(directory, features={"domain": "tab", "group": None, "time": None})
    assert batch.domain.tolist() == [3, -1, 0, 1]
    assert batch.group.tolist() == batch.time.tolist() == [0, 0, 0, 0]
    text = small.write_table(tmp_path / "text", rows(tab=list("abcd")), tab=Column(kind="other"))
    with pytest.raises(UserError, match="features.domain: column 'tab' of part-0.parquet has type"):
        first(text, features={"domain": "tab", "group": None, "time": None})


def test_only_used_columns_are_decoded(tmp_path: Path) -> None:
    directory = small.write_table(tmp_path, rows(unused=[1, 2, 3, 4]), unused=Column(kind="other"))
    reader = small.reader(directory, **ONE)
    assert reader.columns.names == {"item", "price", "click"}
