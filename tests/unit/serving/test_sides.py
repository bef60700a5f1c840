"""Columns that all rows share give what the same values in every row give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError
from prismrec.serving.inference import InferenceModel
from prismrec.serving.tables import FeatureRows, TableLookup
from tests.unit.serving.world import AME, RAW, World, make_world, random_raw


@pytest.fixture(scope="module", params=["two sets", "sets of all kinds"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, InferenceModel]:
    more = {} if request.param == "two sets" else {"embedding": {"sets": AME}}
    world = make_world(**more)
    return world, world.model(tmp_path_factory.mktemp("model"))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(RAW))), st.integers(0, 4), st.integers(1, 5))
def test_any_columns_shared(
    served: tuple[World, InferenceModel], shared: set[str], row: int, rows: int
) -> None:
    world, model = served
    own = random_raw(rows, row)
    user = {name: [RAW[name][row]] for name in shared}
    if {"hist", "hist_w"} & shared != {"hist", "hist_w"}:  # a bag and its weights go together
        user = {name: value for name, value in user.items() if not name.startswith("hist")}
    same = {**own, **{name: value * rows for name, value in user.items()}}
    each = {name: own[name] for name in own if name not in user}
    logits = model.predict_logits(each, shared=user)
    if not each:
        same = {name: value[:1] for name, value in same.items()}
    torch.testing.assert_close(logits, world.expected_logits(same), atol=2e-6, rtol=0)


def test_a_bag_with_weights_of_each_row(served: tuple[World, InferenceModel]) -> None:
    world, model = served
    own = random_raw(2)
    own["hist_w"] = [[0.5, 2.0], [1.0, 0.25]]
    each = {name: own[name] for name in own if name != "hist"}
    logits = model.predict_logits(each, shared={"hist": [[1, 2]]})
    expected = world.expected_logits({**own, "hist": [[1, 2]] * 2})
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=0)


def test_what_is_shared_is_looked_up_once(
    served: tuple[World, InferenceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = served
    ids: list[int] = []
    ours = TableLookup.__call__

    def counted(self: TableLookup, features: list[FeatureRows]) -> Any:
        ids.append(sum(len(each.rows) for each in features))
        return ours(self, features)

    monkeypatch.setattr(TableLookup, "__call__", counted)
    own = random_raw(100)
    user = {"user_id": [3], "hist": [[1, 2, 6]], "hist_w": [[1.0] * 3], "tags": [[0, 2]]}
    model.predict_logits({n: own[n] for n in ("item", "age", "is_new")}, shared=user)
    assert ids == [6, 100]


def test_one_value_each(served: tuple[World, InferenceModel]) -> None:
    _, model = served
    own = random_raw(3)
    with pytest.raises(UserError, match="one value each for all rows, not 2"):
        model.predict_logits(own, shared={"user_id": [1, 2]})
    with pytest.raises(UserError, match="column 'hist' needs lists of integers"):
        model.predict_logits(own, shared={"hist": [3]})
