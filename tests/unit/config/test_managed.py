"""What a recipe may ask of a table of managed ids, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import Recipe, UserError, from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.models import spec_of

SCHEMA = DataSchema(
    name="tiny",
    columns={
        "user": Column(kind="id"),
        "item": Column(kind="id", num_ids=7),
        "click": Column(kind="label"),
    },
)


def recipe(table: dict[str, Any], embedding: dict[str, Any] | None = None) -> Recipe:
    return from_dict(
        {
            "name": "small",
            "data": {"path": "unused", "lanes": 8, "global_batch_size": 64},
            "features": {"sparse": ["user", "item"]},
            "embedding": {"tables": {"user": table}, **(embedding or {})},
            "model": {"name": "deepfm", "hidden": [4]},
            "tasks": [{"name": "click", "label": "click"}],
            "train": {"device": "cpu"},
        }
    )


def test_rows_are_whole_buckets_one_for_each_lane() -> None:
    ids = {"kind": "managed", "policy": "lfu", "interval": 7}
    spec = spec_of(recipe({"rows": 100, "ids": ids}), SCHEMA)
    user, item = spec.tables
    assert user.is_managed
    assert not item.is_managed
    assert user.managed is not None
    assert (user.managed.buckets, user.managed.options.interval) == (8, 7)
    assert (user.rows, user.unknown_rows) == (8 * (13 + 1), 8)
    assert (user.layout, user.sharding) == ("packed", "row_wise")


def test_what_the_planner_may_choose_elsewhere_is_settled_here() -> None:
    spec = spec_of(
        recipe({"rows": 9, "ids": "managed"}, {"layout": "auto", "sharding": "auto"}), SCHEMA
    )
    assert (spec.tables[0].layout, spec.tables[0].sharding) == ("packed", "row_wise")
    assert spec.tables[1].layout == "auto"


@pytest.mark.parametrize(
    ("table", "embedding", "match"),
    [
        ({}, {}, "tables.user.rows: missing"),
        ({"rows": 9, "layout": "separate"}, {}, "tables.user.layout: .* 'packed', got 'separate'"),
        ({"rows": 9}, {"layout": "spread"}, "tables.user.layout: .* 'packed', got 'spread'"),
        ({"rows": 9, "sharding": "data_parallel"}, {}, "user.sharding: .*'row_wise', got 'data_"),
        ({"rows": 9}, {"sharding": "table_wise"}, "user.sharding: .*'row_wise', got 'table_wise'"),
        ({"rows": 9, "unknown_rows": 4}, {}, "user.unknown_rows: .* for each of data.lanes"),
        ({"rows": 9}, {"ranks_per_copy": 2}, "user.ids: with embedding.ranks_per_copy"),
        ({"rows": 9, "ids": {"kind": "managed", "decay": 0.0}}, {}, "decay: must be > 0"),
        ({"rows": 9, "ids": {"kind": "managed", "ttl_steps": 0}}, {}, "ttl_steps: must be >= 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    table: dict[str, Any], embedding: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        recipe({"ids": "managed", **table}, embedding)


def test_a_cached_kernel_is_refused_where_there_is_one() -> None:
    with pytest.raises(UserError, match="tables.user.kernel: .* use 'fused' or 'fused_uvm'"):
        recipe({"ids": "managed", "rows": 9, "kernel": "fused_uvm_caching"})


def test_sets_that_cannot_share_a_row_are_refused() -> None:
    sets = [{"name": "a", "dim": 4}, {"name": "b", "dim": 4, "learning_rate": 0.5}]
    with pytest.raises(UserError, match="lie in one row, but 'a' and 'b' differ in"):
        spec_of(recipe({"rows": 9, "ids": "managed"}, {"sets": sets}), SCHEMA)


def test_row_wise_state_needs_the_flag_as_elsewhere() -> None:
    more = {"num_sets": 2, "optimizer": {"name": "rowwise_adagrad"}, "layout": "auto"}
    chosen = recipe({"rows": 9, "ids": "managed"}, more)
    with pytest.raises(UserError, match="rowwise_adagrad scales a row as a whole"):
        spec_of(chosen, SCHEMA)
    spec_of(recipe({"rows": 9, "ids": "managed"}, {**more, "allow_coupled_sets": True}), SCHEMA)
