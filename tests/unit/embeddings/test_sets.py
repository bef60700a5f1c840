from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import Recipe, UserError, from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec, embedding_spec

SCHEMA = DataSchema(
    name="shop",
    columns={
        "user": Column(kind="id", num_ids=100),
        "item": Column(kind="id", num_ids=50),
        "seen": Column(kind="ids", num_ids=60),
        "bought": Column(kind="ids", num_ids=60),
        "price": Column(kind="number"),
        "click": Column(kind="label"),
    },
)


def _recipe(sparse: list[Any], **embedding: Any) -> Recipe:
    document = {
        "name": "test",
        "data": {"path": "nowhere"},
        "features": {"sparse": sparse},
        "embedding": embedding,
        "model": {"name": "dnn"},
        "tasks": [{"name": "click", "label": "click"}],
    }
    return from_dict(document, source="test")


def _spec(sparse: list[Any], **embedding: Any) -> EmbeddingSpec:
    recipe = _recipe(sparse, **embedding)
    return embedding_spec(recipe, SCHEMA, needs_sets=True, needs_linear=False)


def test_features_of_a_table_share_the_most_rows_and_one_for_unknown_ids() -> None:
    shared = {"name": "seen", "table": "items", "pooling": "mean"}
    spec = _spec(["user", {"name": "item", "table": "items"}, shared], dim=8)
    user, items = spec.tables
    assert (user.name, user.rows, user.features, user.pooling) == ("user", 101, ("user",), "sum")
    assert (items.name, items.rows, items.features) == ("items", 61, ("item", "seen"))
    assert items.pooling == "mean", "an id by itself has no say"
    assert spec.fields == ("user", "item", "seen")
    assert spec.table_of("seen") is items


def test_rows_follow_from_the_kind_of_ids() -> None:
    tables = {
        "user": {"ids": {"kind": "hash", "hashes": 2}, "rows": 30},
        "item": {"ids": "quotient_remainder", "unknown_rows": 4},
        "seen": {"unknown_rows": 3},
    }
    user, item, seen = _spec(["user", "item", "seen"], tables=tables).tables
    assert (user.rows, user.known_rows, user.rows_per_id) == (31, 30, 2)
    assert (item.rows, item.known_rows, item.rows_per_id) == (7 + 8 + 4, 15, 2)  # of 50 ids
    assert (seen.rows, seen.known_rows, seen.rows_per_id) == (63, 60, 1)


def test_a_published_size_of_quotient_and_remainder() -> None:
    ids = {"kind": "quotient_remainder", "divisor": 1000}
    spec = _spec(["user"], tables={"user": {"ids": ids, "rows": 1_000_003}})
    assert spec.tables[0].known_rows == 2001


def test_rows_that_add_up_to_a_vector_are_not_averaged() -> None:
    two = {"ids": {"kind": "hash", "hashes": 2}, "rows": 30}
    seen = {"name": "seen", "pooling": "mean"}
    with pytest.raises(
        UserError, match="tables.seen.ids: .* sum of 2 rows, which the mean pooling"
    ):
        _spec([seen], tables={"seen": two})
    sets = [{"name": "a", "dim": 8}, {"name": "b", "dim": 8, "pooling": "mean"}]
    with pytest.raises(UserError, match="tables.user.ids: .* mean pooling of set 'b' would divide"):
        _spec(["user"], sets=sets, tables={"user": two})
    # One id by itself is no bag: how its feature pools does not matter.
    assert _spec([{"name": "user", "pooling": "mean"}], tables={"user": two}).tables


def test_a_column_without_a_number_of_ids_needs_rows() -> None:
    schema = SCHEMA.model_copy(update={"columns": {**SCHEMA.columns, "user": Column(kind="id")}})
    for kind in ("direct", "quotient_remainder"):
        recipe = _recipe(["user", "item"], tables={"user": {"ids": kind}})
        with pytest.raises(
            UserError, match=f"user.rows: missing; ids = '{kind}' .* 'user' no num_"
        ):
            embedding_spec(recipe, schema, needs_sets=True, needs_linear=False)
    for options in ({"rows": 7}, {"rows": 7, "ids": "hash"}):
        recipe = _recipe(["user", "item"], tables={"user": options})
        spec = embedding_spec(recipe, schema, needs_sets=True, needs_linear=False)
        assert spec.tables[0].rows == 8


def test_the_linear_set_is_last_and_its_width_a_multiple_of_four() -> None:
    recipe = _recipe(["user"], sets=[{"name": "a", "dim": 8}, {"name": "b", "dim": 16}])
    spec = embedding_spec(recipe, SCHEMA, needs_sets=True, needs_linear=True)
    assert [(each.name, each.dim) for each in spec.sets] == [("a", 8), ("b", 16), (LINEAR, 4)]
    (user,) = physical_tables(spec)
    assert user.slices == {"a": (0, 8), "b": (8, 24), LINEAR: (24, 28)}
    assert user.width == 28


def test_packed_rows_wider_than_the_kernels_take_are_refused() -> None:
    with pytest.raises(UserError, match=r"embedding.layout: .* 3 sets .*width 1536, over 1024"):
        _spec(["user"], dim=512, num_sets=3)
    widths = {
        layout: [each.width for each in physical_tables(_spec(["user"], dim=512, **options))]
        for layout, options in {
            "packed": {"num_sets": 2},
            "separate": {"num_sets": 3, "layout": "separate"},
            "spread": {"num_sets": 3, "layout": "spread"},
        }.items()
    }
    assert widths == {"packed": [1024], "separate": [512] * 3, "spread": [1536]}


def test_only_the_packed_tables_are_named_as_too_wide() -> None:
    separate = {"user": {"layout": "separate"}}
    with pytest.raises(UserError, match=r"embedding\.layout: .*width 1536.* \(table 'item'\)"):
        _spec(["user", "item"], dim=512, num_sets=3, tables=separate)


AME = [
    {"name": "wide", "dim": 16},
    {"name": "half", "dim": 8, "data_type": "fp16"},
    {"name": "users", "dim": 4, "features": ["user"], "init_std": 0.5},
    {"name": "quick", "dim": 8, "learning_rate": 0.5},
    {"name": "plain", "dim": 8, "optimizer": {"name": "sgd"}},
]


def test_sets_of_one_form_are_packed_and_others_lie_beside_them() -> None:
    spec = _spec(["user", "item"], sets=AME)
    tables = {each.name: each for each in physical_tables(spec)}
    assert {name: list(each.slices) for name, each in tables.items()} == {
        "t_user__wide": ["wide", "users"],
        "t_user__half": ["half"],
        "t_user__quick": ["quick"],
        "t_user__plain": ["plain"],
        "t_item__wide": ["wide"],
        "t_item__half": ["half"],
        "t_item__quick": ["quick"],
        "t_item__plain": ["plain"],
    }
    assert tables["t_user__wide"].slices == {"wide": (0, 16), "users": (16, 20)}
    forms = {each: tables[f"t_item__{each}"].form for each in ("wide", "half", "quick", "plain")}
    assert [form.data_type for form in forms.values()] == ["fp32", "fp16", "fp32", "fp32"]
    assert forms["quick"].optimizer.learning_rate == 0.5
    assert [form.optimizer.name for form in forms.values()] == ["adagrad"] * 3 + ["sgd"]
    assert spec.fields_of(spec.sets[2]) == ("user",)
    assert spec.sets[2].init_std == 0.5


def test_a_set_pools_in_its_own_way() -> None:
    sets = [{"name": "a", "dim": 8}, {"name": "b", "dim": 8, "pooling": "mean"}]
    spec = _spec(["seen"], sets=sets)
    assert [each.form.pooling for each in physical_tables(spec)] == ["sum", "mean"]


@pytest.mark.parametrize(
    ("sets", "match"),
    [
        ([{"name": "a", "dim": 4, "features": ["itme", "user"]}], r"sets\[0\].*'itme'.*'item'"),
        ([{"name": "a", "dim": 4, "features": []}], r"sets\[0\].*covers no feature"),
        ([{"name": "a", "dim": 4, "features": ["user"]}], "no set covers 'item'"),
    ],
)
def test_coverage_that_leaves_something_out_is_refused(sets: list[Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        _spec(["user", "item"], sets=sets)


def test_coupling_is_judged_by_what_shares_a_row() -> None:
    row_wise = {"name": "rowwise_adagrad"}
    sets = [{"name": "a", "dim": 8}, {"name": "b", "dim": 8, "optimizer": {"name": "adagrad"}}]
    assert _spec(["user"], sets=sets, optimizer=row_wise).tables
    both = [{"name": "a", "dim": 8}, {"name": "b", "dim": 8}]
    tables = {"user": {"layout": "spread"}}
    with pytest.raises(UserError, match="tables.user: rowwise_adagrad .*couples packed sets"):
        _spec(["user"], sets=both, optimizer=row_wise, layout="separate", tables=tables)


def test_a_layout_left_to_the_planner_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="choose a layout"):
        physical_tables(_spec(["user"], layout="auto"))


def test_features_of_a_table_must_agree_on_pooling() -> None:
    seen = {"name": "seen", "table": "items", "pooling": "sum"}
    bought = {"name": "bought", "table": "items", "pooling": "mean"}
    with pytest.raises(UserError, match="tables.items: .*pooling.*seen: sum, bought: mean"):
        _spec([seen, bought])


def test_a_column_that_is_missing_or_of_another_kind_is_named() -> None:
    with pytest.raises(
        UserError, match=r"features.sparse\[1\]: .*'shop' has no column 'itme'.*item"
    ):
        _spec(["user", "itme"])
    with pytest.raises(UserError, match=r"features.sparse\[0\]: column 'price' .* 'number'.*'id'"):
        _spec(["price"])


def test_a_tables_own_options_replace_everyones() -> None:
    tables = {
        "user": {"rows": 10, "sharding": "row_wise", "learning_rate": 0.5},
        "item": {"optimizer": {"name": "sgd"}},
    }
    user, item, seen = _spec(["user", "item", "seen"], tables=tables).tables
    assert (user.rows, user.sharding, user.optimizer.learning_rate) == (11, "row_wise", 0.5)
    assert (user.optimizer.name, item.optimizer.name, seen.optimizer.name) == (
        "adagrad",
        "sgd",
        "adagrad",
    )
    assert (item.rows, item.sharding) == (51, "auto")


def test_one_accumulator_for_packed_sets_must_be_asked_for() -> None:
    tables = {"user": {"optimizer": {"name": "rowwise_adagrad"}}}
    with pytest.raises(UserError, match="tables.user: rowwise_adagrad .*allow_coupled_sets"):
        _spec(["user"], num_sets=2, tables=tables)
    assert _spec(["user"], num_sets=2, tables=tables, allow_coupled_sets=True).tables
    assert _spec(["user"], num_sets=2, tables=tables, layout="separate").tables
