"""Placements that would change the numbers are named when the recipe is read, with what is left."""

from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import ConfigError, from_dict

HALF = {"name": "half", "dim": 8, "data_type": "fp16"}
WIDE = {"name": "wide", "dim": 16}


def _problems(embedding: dict[str, Any], model: str = "dnn") -> list[str]:
    document = {
        "name": "test",
        "data": {"path": "nowhere"},
        "features": {"sparse": ["user", "item"]},
        "model": {"name": model},
        "tasks": [{"name": "click", "label": "click"}],
        "embedding": embedding,
    }
    try:
        from_dict(document, source="test")
    except ConfigError as error:
        return list(error.problems)
    return []


ROW_WISE = {"name": "rowwise_adagrad"}
UVM = {"kernel": "fused_uvm", "sharding": "data_parallel"}


@pytest.mark.parametrize(
    ("embedding", "expected"),
    [
        ({"sets": [WIDE, HALF]}, ""),
        ({"sets": [WIDE, HALF], "sharding": "row_wise"}, ""),
        (
            {"sets": [WIDE, HALF], "sharding": "data_parallel"},
            "embedding.sharding: 'data_parallel' is not possible with adagrad and fp16, which the "
            "set 'half' would have: such tables are trained in fp32 only; use 'table_wise' or "
            "'column_wise' or 'row_wise' or 'table_row_wise' or 'table_column_wise' or 'grid' "
            "(table 'user' and 1 more)",
        ),
        (
            {"sets": [WIDE], "tables": {"item": {"sharding": "grid", "optimizer": ROW_WISE}}},
            "embedding.tables.item.sharding: 'grid' is not possible with rowwise_adagrad and fp32, "
            "which the set 'wide' would have: rowwise_adagrad would keep an accumulator for each row "
            "and shard, which embedding.allow_coupled_sets = true allows; use 'table_wise' or "
            "'row_wise' or 'table_row_wise' (table 'item')",
        ),
        ({"sets": [WIDE], "sharding": "data_parallel", "optimizer": {"name": "adam"}}, ""),
        (
            {"sets": [WIDE], "sharding": "data_parallel", "optimizer": {"name": "lamb"}},
            "embedding.sharding: 'data_parallel' is not possible with lamb and fp32, which the set "
            "'wide' would have: such tables are not fused",
        ),
        (
            {"sets": [WIDE, {**WIDE, "name": "too"}], "layout": "spread", "sharding": "row_wise"},
            "embedding.sharding: 'row_wise' keeps a row whole, and layout = 'spread' cuts it between "
            "its sets; use 'column_wise' or 'table_column_wise' or 'grid', or another layout",
        ),
        ({"sets": [WIDE], "layout": "spread", "sharding": "row_wise"}, ""),
        ({"sets": [WIDE, HALF], "layout": "spread", "sharding": "row_wise"}, ""),
        (
            {"sets": [WIDE], "tables": {"user": UVM}},
            "embedding.tables.user.sharding: kernel = 'fused_uvm' is for fused tables",
        ),
    ],
)
def test_what_cannot_be_placed_is_named(embedding: dict[str, Any], expected: str) -> None:
    problems = _problems(embedding)
    assert len(problems) == bool(expected)
    assert all(problem.startswith(expected) for problem in problems)


def test_all_is_told_at_once() -> None:
    embedding = {
        "sets": [{**WIDE, "features": ["user", "itme"]}, HALF, {"name": "x/y", "dim": 512}],
        "sharding": "data_parallel",
        "tables": {"itm": {}, "item": {"optimizer": ROW_WISE, "layout": "packed"}},
    }
    starts = [
        "embedding.sets[0].features: no sparse feature is called 'itme'; did you mean 'item'?",
        "embedding.sets[2].name: the name of a set is not empty",
        "embedding.sharding: 'data_parallel' is not possible with adagrad and fp16",
        "embedding.sharding: 'data_parallel' is not possible with rowwise_adagrad and fp16",
        "embedding.sharding: 'data_parallel' is not possible with rowwise_adagrad and fp32",
        "embedding.tables.itm: no feature uses this table; did you mean 'item'?",
    ]
    problems = _problems(embedding)
    assert [each for each in starts if not any(line.startswith(each) for line in problems)] == []
    assert len(problems) == len(starts)


def test_first_order_weights_are_a_set_too() -> None:
    embedding = {"sets": [WIDE], "layout": "spread", "sharding": "table_wise"}
    assert _problems(embedding) == []
    assert _problems(embedding, "deepfm")[0].startswith("embedding.sharding: 'table_wise' keeps")
