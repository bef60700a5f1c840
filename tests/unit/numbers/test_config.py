"""Recipes of numbers: what they mean, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import ConfigError, Recipe, dump, from_dict

RANGE = {"quantiser": "linear", "low": 0.0, "high": 1.0}


def recipe(*numbers: Any, statistics: str | None = None, **more: Any) -> Recipe:
    features: dict[str, Any] = {"sparse": ["user"], "numbers": list(numbers)}
    if statistics is not None:
        features["statistics"] = statistics
    return from_dict(
        {
            "name": "numbers",
            "data": {"path": "rows"},
            "features": features,
            "model": {"name": "dcnv2"},
            "tasks": [{"name": "click", "label": "click"}],
            **more,
        }
    )


def refused(*numbers: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as error:
        recipe(*numbers, **more)
    return "\n".join(error.value.problems)


def mnse(**options: Any) -> dict[str, Any]:
    return {"name": "price", "encoding": {"kind": "mnse", **RANGE, **options}}


def test_a_bare_name_is_a_column_with_the_default_encoding() -> None:
    number = recipe("price", statistics="numbers.json").features.numbers[0]
    assert (number.source, number.encoding.bases) == ("price", (2, 3, 10))
    assert [each.name for each in number.lookups] == ["price::b2", "price::b3", "price::b10"]
    assert [each.table_name for each in number.lookups] == ["mnse_b2", "mnse_b3", "mnse_b10"]


def test_lookups_are_ids_and_then_numbers() -> None:
    features = recipe(
        mnse(bases=[7]), {"name": "age", "encoding": RANGE | {"kind": "mnse"}}
    ).features
    names = ["user", "price::b7", "age::b2", "age::b3", "age::b10"]
    assert [each.name for each in features.lookups] == names
    assert features.columns == ["user", "price", "age"]


def test_a_recipe_with_numbers_is_read_back() -> None:
    whole = recipe(
        mnse(widths=[12, 9, 5], mode="paper"),
        {"name": "age", "column": "years"},
        statistics="s.json",
    )
    assert from_dict(dump(whole)) == whole


def test_a_set_covers_a_number_by_its_name_or_by_one_base() -> None:
    sets = [
        {"name": "all", "dim": 4},
        {"name": "some", "dim": 4, "features": ["price"]},
        {"name": "one", "dim": 4, "features": ["price::b3", "user"]},
    ]
    section = recipe(mnse(), embedding={"sets": sets}).embedding
    covered = [[each.covers(f"price::b{base}") for base in (2, 3, 10)] for each in section.sets]
    assert covered == [[True] * 3, [True] * 3, [False, True, False]]
    wrong = refused(mnse(), embedding={"sets": [{"name": "a", "dim": 4, "features": ["prize"]}]})
    assert "no sparse feature is called 'prize'; did you mean 'price'?" in wrong


def test_statistics_are_asked_for_where_they_are_needed() -> None:
    assert "features: statistics: missing; 'price' is encoded by the statistics" in refused("price")
    assert "statistics: missing" in refused(mnse(low=None, quantiser="log1p"))
    assert "statistics: missing; 'price' and 1 more" in refused("price", "age")
    for needs_none in ({}, {"negative": "sign", "low": None}, {"negative": "clamp"}):
        recipe(mnse(**needs_none))
    recipe({"name": "price", "encoding": {"kind": "mnse", "quantiser": "cosine"}})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bases": [2, 2]}, "bases: each system once, and at least one, got [2, 2]"),
        ({"bases": [1]}, "encoding.bases[0]: must be >= 2, got 1"),
        ({"levels": 1}, "encoding.levels: must be >= 2, got 1"),
        ({"widths": [10, 7]}, "widths: one number of digits for each of the 3 bases, got 2"),
        (
            {"widths": [10, 6, 4]},
            "widths: 6 digits to the base 3 hold 729 of 1024 levels; at least 7 are needed",
        ),
        ({"high": 0.0}, "high: must be above low, got 0.0 and 0.0"),
        ({"quantiser": "cosine"}, "low: 'cosine' goes from -1 to 1; leave low and high out"),
        (
            {"quantiser": "count", "high": 1024.0},
            "levels: 'count' from 0 to 1024 needs 1025 levels, got 1024",
        ),
        ({"quantiser": "count", "low": 0.5}, "low: 'count' begins at a whole number, got 0.5"),
        (
            {"mode": "paper", "negative": "sign"},
            "negative: 'sign' has its row in mode = 'robust' only",
        ),
        ({"negative": "sign", "low": -1.0}, "low: with negative = 'sign' the range begins at 0"),
        (
            {"negative": "clamp", "low": -1.0},
            "low: with negative = 'clamp' the range begins at 0 or",
        ),
        ({"unit": 0.0}, "encoding.unit: must be > 0.0, got 0.0"),
        ({"kind": "minse"}, "encoding.kind"),
        ({"basis": [2]}, "encoding.basis: unknown key; did you mean 'bases'?"),
    ],
)
def test_encodings_that_are_refused(options: dict[str, Any], problem: str) -> None:
    assert problem in refused(mnse(**options))


@pytest.mark.parametrize(
    ("numbers", "more", "problem"),
    [
        ([mnse(), mnse()], {}, "numbers[1].name: another feature is called 'price'"),
        ([{**mnse(), "name": "user"}], {}, "numbers[0].name: another feature is called 'user'"),
        (
            [{**mnse(), "name": "a::b"}],
            {},
            "numbers[0].name: not empty and without '::', got 'a::b'",
        ),
        (
            [{**mnse(), "share": "money"}, {**mnse(levels=64), "name": "fee", "share": "money"}],
            {},
            "numbers[1].share: rows can be shared by numbers of one kind, levels, widths and mode; "
            "those of 'money' differ",
        ),
        (
            [mnse()],
            {"embedding": {"tables": {"mnse_b2": {"rows": 5, "ids": "hash"}}}},
            "embedding.tables.mnse_b2.ids: the rows of this table are the digits of numbers, not ids",
        ),
        (
            [mnse(bases=[2])],
            {"embedding": {"tables": {"mnse_b3": {}}}},
            "embedding.tables.mnse_b3: no feature uses this table; did you mean 'mnse_b2'?",
        ),
    ],
)
def test_numbers_that_are_refused(numbers: list[Any], more: dict[str, Any], problem: str) -> None:
    assert problem in refused(*numbers, **more)


def test_a_table_of_ids_cannot_be_called_like_one_of_numbers() -> None:
    features = {"sparse": [{"name": "user", "table": "mnse_b2"}], "numbers": [mnse()]}
    with pytest.raises(ConfigError, match=r"features.sparse\[0\].table: 'mnse_b2' is the table of"):
        recipe(features=features)
