"""What a recipe may ask of sequences, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import Recipe, UserError, from_dict
from prismrec.data.schema import Column, DataSchema
from prismrec.models import build_model, fields_of, spec_of

SCHEMA = DataSchema(
    name="tiny",
    columns={
        "user": Column(kind="id", num_ids=9),
        "item": Column(kind="id", num_ids=7),
        "kind": Column(kind="id", num_ids=3),
        "seen": Column(kind="ids", num_ids=11),
        "kinds": Column(kind="ids", num_ids=3),
        "weights": Column(kind="numbers"),
        "click": Column(kind="label"),
    },
)
ITEM, KIND = {"column": "seen", "target": "item"}, {"column": "kinds", "target": "kind"}
HISTORY: dict[str, Any] = {"name": "history", "behaviours": [ITEM, KIND]}


def recipe(
    history: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    embedding: dict[str, Any] | None = None,
    **features: Any,
) -> Recipe:
    return from_dict(
        {
            "name": "small",
            "data": {"path": "unused", "lanes": 8, "global_batch_size": 64},
            "features": {
                "sparse": ["user", "item", "kind"],
                "sequences": [HISTORY | (history or {})],
                **features,
            },
            "embedding": embedding or {},
            "model": {"name": "deepfm", "hidden": [4], "sequence": "tim", **(model or {})},
            "tasks": [{"name": "click", "label": "click"}],
            "train": {"device": "cpu"},
        }
    )


def test_the_tables_that_behaviours_look_up() -> None:
    spec = spec_of(recipe(), SCHEMA)
    user, item, kind = spec.tables
    assert not user.behaviours
    assert [each.key for each in item.behaviours] == ["history/seen"]
    assert [each.target for each in kind.behaviours] == ["kind"]
    assert item.rows == 12  # the column of behaviours has more ids than that of the target
    (sequence,) = spec.sequences
    assert (sequence.positions, sequence.intervals) == (50, 0)


def test_a_bare_name_stands_for_a_module() -> None:
    assert recipe().model.sequence.kind == "tim"
    assert recipe(model={"sequence": {"kind": "din"}}).model.sequence.hidden == (80, 40)


SETS = [{"name": "r", "dim": 8}, {"name": "a", "dim": 4, "features": ["item", "kind"]}]
DARE = {"sequence": {"kind": "dare", "attention": "a"}}


def test_a_set_that_only_weighs_is_read_by_no_expert() -> None:
    asked = recipe(model=DARE, embedding={"sets": SETS})
    fields = fields_of(asked, spec_of(asked, SCHEMA))
    assert fields.sets == ("r",)
    assert (fields.sequences[0].widths, fields.sequences[0].attention) == ((16,), 8)


def test_models_of_one_set_may_have_another_that_only_weighs() -> None:
    asked = recipe(
        model=DARE | {"name": "mmoe", "hidden": [4], "num_experts": 2}, embedding={"sets": SETS}
    )
    assert fields_of(asked, spec_of(asked, SCHEMA)).sets == ("r",)


@pytest.mark.parametrize(
    ("history", "match"),
    [
        ({"name": "a/b"}, "features.sequences.0..name: .* must match|features.sequences.*name"),
        ({"behaviours": []}, "at least one column of behaviours is needed"),
        ({"behaviours": [ITEM, ITEM]}, "named twice: seen"),
        (
            {"behaviours": [{"column": "seen", "target": "itm"}]},
            r"features.sequences\[0\].behaviours\[0\].target: no sparse feature is called 'itm'; did you "
            "mean 'item'",
        ),
        ({"gaps": "weights", "times": "seen"}, "times: `gaps` say the same; give one of the two"),
        ({"times": "seen"}, "times: features.time has to name the column with the time of a row"),
        ({"buckets": "sqrt60"}, "buckets: no column tells when a behaviour was; give `gaps`"),
        ({"gaps": "weights", "time_unit": "ms"}, "time_unit: it is that of `times`"),
        ({"max_length": 0}, "max_length: must be >= 1"),
    ],
)
def test_sequences_that_are_refused(history: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        recipe(history)


@pytest.mark.parametrize(
    ("embedding", "match"),
    [
        (
            {"tables": {"item": {"ids": "managed", "rows": 64}}},
            "embedding.tables.item.ids: rows are given to the ids of pooled features only",
        ),
        (
            {"tables": {"item": {"layout": "spread"}}},
            "embedding.tables.item.layout: 'spread' is for tables of pooled features, and a sequence",
        ),
        ({"layout": "spread", "num_sets": 2}, "embedding.layout: 'spread' is for tables of pooled"),
        (
            {"tables": {"kind": {"sharding": "grid"}}},
            "embedding.tables.kind.sharding: 'grid' is for tables of pooled features, and a sequence looks "
            "up 'kind'; set 'data_parallel' or 'table_wise' or 'column_wise' or 'row_wise' for it",
        ),
        (
            {"communication": {"forward": "bf16"}},
            "embedding.communication: the vectors of sequences travel as they are",
        ),
        (
            {"sets": [{"name": "u", "dim": 8, "features": ["user"]}]},
            "features.sequences: no set covers a target of 'history'",
        ),
    ],
)
def test_tables_that_cannot_be_those_of_sequences(embedding: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        recipe(embedding=embedding)


def test_copies_of_the_tables_of_sequences_are_refused() -> None:
    with pytest.raises(UserError, match="ranks_per_copy: tables of sequences have one copy"):
        from_dict(
            {
                "name": "small",
                "data": {"path": "unused", "lanes": 8, "global_batch_size": 64},
                "features": {"sparse": ["item", "kind"], "sequences": [HISTORY]},
                "embedding": {"ranks_per_copy": 1},
                "model": {"name": "dnn", "sequence": "tim"},
                "tasks": [{"name": "click", "label": "click"}],
                "workers": {"count": 2},
            }
        )


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            {"sequence": None},
            "features.sequences: no part of the model reads them; set model.sequence",
        ),
        ({"sequence": "tmi"}, "model.sequence.kind: unknown kind 'tmi'; did you mean 'tim'"),
        (
            {"sequence": {"kind": "tim", "encoding": "both"}},
            "model.sequence.encoding: 'both' needs the time of each behaviour, and sequence 'history' has "
            "neither",
        ),
        ({"sequence": {"kind": "din", "hidden": []}}, "at least one layer is needed"),
        (
            {"sequence": {"kind": "dare", "attention": "b"}},
            "model.sequence.attention: no set is called 'b'; did you mean|known",
        ),
    ],
)
def test_modules_that_are_refused(model: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        recipe(model=model)


@pytest.mark.parametrize(
    ("sets", "module", "match"),
    [
        (
            [SETS[0], {"name": "a", "dim": 4}],
            DARE,
            "model.sequence.attention: set 'a' only weighs behaviours, and nothing would train its vectors of "
            "other features; its `features` have to be among item, kind",
        ),
        (
            SETS,
            {"sequence": {"kind": "dare", "attention": "a", "representation": "a"}},
            "model.sequence.representation: it is the set of the attention; name another",
        ),
    ],
)
def test_sets_that_dare_cannot_use(sets: list[Any], module: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        recipe(model=module, embedding={"sets": sets})


def test_sequences_that_do_not_exist_cannot_be_read() -> None:
    with pytest.raises(UserError, match="model.sequence: there is no sequence to read"):
        recipe(sequences=[])


def test_two_sequences_of_one_name() -> None:
    with pytest.raises(UserError, match="features.sequences: two are called 'history'"):
        recipe(sequences=[HISTORY, HISTORY])


def test_a_bag_cannot_look_up_the_table_of_a_sequence() -> None:
    bag = {"name": "bag", "column": "seen", "table": "item"}
    with pytest.raises(
        UserError,
        match=r"features.sparse\[3\].table: 'bag' is a bag, and table 'item' gives a sequence its vectors "
        "one by one, without pooling; give the bag a table of its own",
    ):
        spec_of(recipe(sparse=["user", "item", "kind", bag]), SCHEMA)
    with pytest.raises(UserError, match=r"features.sparse\[3\].table: 'bag' is a bag"):
        recipe(sparse=["user", "item", "kind", bag | {"weights": "weights"}])


@pytest.mark.parametrize("name", ["fm", "lr"])
def test_models_without_layers_cannot_read_a_sequence(name: str) -> None:
    asked = {"name": name, "sequence": "tim"}
    if name == "lr":
        with pytest.raises(UserError, match="no set covers a target of 'history'"):
            _named(asked)
        return
    built = _named(asked)
    with pytest.raises(
        UserError, match="model.sequence: 'fm' has no expert with layers that could"
    ):
        build_model(built.model, fields_of(built, spec_of(built, SCHEMA)))


def _named(model: dict[str, Any]) -> Recipe:
    return from_dict(
        {
            "name": "small",
            "data": {"path": "unused", "lanes": 8, "global_batch_size": 64},
            "features": {"sparse": ["item", "kind"], "sequences": [HISTORY]},
            "model": model,
            "tasks": [{"name": "click", "label": "click"}],
        }
    )
