"""What is said about the sets of a recipe, all of it at once and with its place."""

from __future__ import annotations

from typing import Any

import pytest

from prismrec.config import ConfigError, Recipe, from_dict

ROW_WISE = {"name": "rowwise_adagrad"}


def _recipe(embedding: dict[str, Any], **changes: Any) -> Recipe:
    document = {
        "name": "test",
        "data": {"path": "nowhere"},
        "features": {"sparse": ["user", "item", {"name": "seen", "table": "item"}]},
        "model": {"name": "dcnv2"},
        "tasks": [{"name": "click", "label": "click"}],
        "embedding": embedding,
    }
    return from_dict({**document, **changes}, source="test")


def _problems(embedding: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _recipe(embedding, **changes)
    return caught.value.problems


def _sets(*names: str, **options: Any) -> list[dict[str, Any]]:
    return [{"name": name, "dim": 8, **options} for name in names]


def test_every_problem_of_the_sets_is_told_at_once_with_its_place() -> None:
    sets = [
        {"name": "wide", "dim": 16, "features": ["user", "itme"]},
        {"name": "wide", "dim": 8, "features": []},
        {"name": "linear", "dim": 8, "features": ["user"]},
        {"name": "a__b", "dim": 4, "features": ["user"], "data_type": "fp16"},
    ]
    tables = {"item": {"pretrained": [{"set": "wied", "path": "somewhere"}]}}
    starts = [
        "embedding.sets[1].name: sets[0] is called 'wide' too",
        "embedding.sets[2].name: 'linear' is taken by the first-order weights",
        "embedding.sets[3].name: the name of a set is not empty, does not begin with '_' and cannot "
        "hold '.', '/' or '__', got 'a__b'",
        "embedding.tables.item.pretrained[0].set: no set is called 'wied'; did you mean 'wide'?",
        "embedding.sets[0].features: no sparse feature is called 'itme'; did you mean 'item'?",
        "embedding.sets[1].features: set 'wide' covers no feature; name at least one",
        "embedding.sets: no set covers 'item' and 'seen'; each feature has to be in the `features`",
    ]
    problems = _problems({"sets": sets, "tables": tables})
    assert len(problems) == len(starts)
    for problem, start in zip(sorted(problems), sorted(starts), strict=True):
        assert problem.startswith(start)


def test_a_model_with_first_order_weights_covers_every_feature() -> None:
    sets = _sets("a", features=["user"])
    assert _recipe({"sets": sets}, model={"name": "deepfm"}).embedding.sets
    assert "no set covers 'item' and 'seen'" in _problems({"sets": sets})[0]


def test_widths_are_named_with_their_set_and_place() -> None:
    (problem,) = _problems({"sets": [{"name": "a", "dim": 8}, {"name": "b", "dim": 18}]})
    assert problem.startswith("embedding.sets[1].dim: a width must be a multiple of 4")
    (problem,) = _problems({"dim": 512, "num_sets": 3})
    assert problem == (
        "embedding.layout: packing 3 sets makes rows of width 1536, over 1024; use layout = 'spread' "
        "or 'separate', or narrower sets (table 'user' and 1 more)"
    )


def test_only_rows_that_are_packed_count_together() -> None:
    wide = [{"name": name, "dim": 512} for name in ("a", "b", "c")]
    for layout in ("separate", "spread", "auto"):
        assert _recipe({"sets": wide, "layout": layout}).embedding.layout == layout
    apart = [{**each, "learning_rate": 0.1 * (1 + m)} for m, each in enumerate(wide)]
    assert _recipe({"sets": apart}).embedding.sets, "each in a row of its own"
    apart = [*wide[:2], {**wide[2], "data_type": "fp16"}]
    assert _recipe({"sets": apart}).embedding.sets
    by_feature = [{**wide[0], "features": ["user"]}, *wide[1:]]
    problems = _problems({"sets": by_feature, "tables": {"user": {"layout": "packed"}}})
    assert [each.partition(":")[0] for each in problems] == ["embedding.tables.user.layout"]


def test_first_order_weights_count_in_a_row() -> None:
    halves = [{"name": "a", "dim": 512}, {"name": "b", "dim": 512}]
    assert _recipe({"sets": halves}).embedding.sets
    (problem,) = _problems({"sets": halves}, model={"name": "wide_deep"})
    assert "packing 3 sets makes rows of width 1028" in problem
    (problem,) = _problems({"optimizer": ROW_WISE}, model={"name": "fm"})
    assert problem.startswith("embedding: rowwise_adagrad scales a row as a whole")


def test_sets_are_coupled_where_they_share_a_row_only() -> None:
    assert _recipe({"sets": _sets("a"), "optimizer": ROW_WISE})
    own = {"name": "adagrad", "learning_rate": 0.1}
    assert _recipe({"sets": [*_sets("a"), *_sets("b", optimizer=own)], "optimizer": ROW_WISE})
    apart = [*_sets("a", features=["user"]), *_sets("b", features=["item", "seen"])]
    assert _recipe({"sets": apart, "optimizer": ROW_WISE}), "no table has both"
    (problem,) = _problems({"sets": _sets("a", "b"), "optimizer": ROW_WISE})
    assert problem.startswith("embedding: rowwise_adagrad scales a row as a whole, which couples")
    tables = {"item": {"optimizer": ROW_WISE}}
    (problem,) = _problems({"sets": _sets("a", "b"), "tables": tables})
    assert problem.startswith("embedding.tables.item: rowwise_adagrad")
    assert problem.endswith("(table 'item')")
    assert _recipe({"sets": _sets("a", "b"), "tables": tables, "allow_coupled_sets": True})
