"""Requests that are scored together, and the change from one model to another between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismrec.serving.http.requests import Limits, RequestError
from prismrec.serving.scorer import Scorer, ServedModel
from prismrec.serving.sides import Sides
from tests.unit.serving.world import RAW, make_world, random_raw


def body(raw: dict[str, Any]) -> bytes:
    return json.dumps({"inputs": raw}).encode()


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    return Scorer(ServedModel(make_world().model(tmp_path), "ctr", 1), Limits(rows=40))


def test_together_is_as_alone(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    inference = scorer.model.inference
    ours = type(inference).logits_of

    def counted(self: Any, sides: Sides) -> torch.Tensor:
        calls.append(sides.rows)
        return ours(self, sides)

    monkeypatch.setattr(type(inference), "logits_of", counted)
    raws = [random_raw(rows, rows) for rows in (3, 17, 1, 20, 30)]
    whole = random_raw(2, 9)
    whole["age"] = [1, 2]  # integers, which fit no column of floats
    raws.append(whole)
    requests = [scorer.read(body(raw)) for raw in raws]
    requests.append(scorer.read(body({name: [] for name in RAW})))
    outcomes = scorer.score(requests)
    # 20 more rows would be over the limit of 40; the others differ in the types of their columns.
    assert sorted(calls) == [2, 20, 21, 30]
    for raw, outcome in zip(raws, outcomes, strict=False):
        assert isinstance(outcome, torch.Tensor)
        expected = torch.sigmoid(make_world().expected_logits(raw))
        assert torch.allclose(outcome, expected, atol=1e-6)
    assert isinstance(outcomes[-1], torch.Tensor)
    assert outcomes[-1].shape == (0, 2)


def test_requests_with_shared_columns_among_others(scorer: Scorer) -> None:
    raws, bodies = [], []
    for seed, rows in ((1, 4), (2, 6)):
        raw = random_raw(rows, seed)
        user = {name: raw[name][0] for name in ("user_id", "hist", "hist_w", "age")}
        raws.append({**raw, **{name: [value] * rows for name, value in user.items()}})
        own = {name: values for name, values in raw.items() if name not in user}
        bodies.append(json.dumps({"inputs": own, "shared": user}).encode())
    plain = random_raw(3, 3)
    outcomes = scorer.score([scorer.read(each) for each in (bodies[0], body(plain), bodies[1])])
    for raw, outcome in zip((raws[0], plain, raws[1]), outcomes, strict=True):
        assert isinstance(outcome, torch.Tensor)
        expected = torch.sigmoid(make_world().expected_logits(raw))
        assert torch.allclose(outcome, expected, atol=1e-6)


def test_one_wrong_request_spares_the_others(scorer: Scorer) -> None:
    good = random_raw(4)
    wrong = {**good, "hist": [[1]] * 4, "hist_w": [[1.0], [1.0], [1.0, 2.0], [1.0]]}
    huge = {**good, "age": [0.0, 3e38, 0.0, 0.0]}
    requests = [scorer.read(body(each)) for each in (good, wrong, huge, good)]
    first, second, third, fourth = scorer.score(requests)
    expected = torch.sigmoid(make_world().expected_logits(good)).numpy()
    for outcome in (first, fourth):
        assert isinstance(outcome, torch.Tensor)
        assert np.allclose(outcome, expected, atol=1e-6)
    assert isinstance(second, RequestError)
    assert second.message.startswith("column 'hist_w': row 2 has 2 weights for 1 ids")
    assert isinstance(third, RequestError)
    assert third.message.startswith("row 1: its numbers are too large")


def test_rows_are_counted_as_they_were_scored(tmp_path: Path) -> None:
    counted: list[int] = []
    model = ServedModel(make_world().model(tmp_path), "ctr", 1)
    scorer = Scorer(model, Limits(rows=40), counted.append)
    good = random_raw(4)
    wrong = {**good, "hist": [[1]] * 4, "hist_w": [[1.0], [1.0], [1.0, 2.0], [1.0]]}
    huge = {**good, "age": [0.0, 3e38, 0.0, 0.0]}
    shared = {name: values for name, values in random_raw(5).items() if name != "age"}
    alone = scorer.read(json.dumps({"inputs": shared, "shared": {"age": 0.5}}).encode())
    more = scorer.read(body(random_raw(6)))
    scorer.score([scorer.read(body(good)), alone, more])
    assert sorted(counted) == [5, 10]
    counted.clear()
    scorer.score([scorer.read(body(each)) for each in (good, wrong, huge)])
    assert counted == [4]
    counted.clear()
    scorer.score([scorer.read(body(wrong))])
    assert counted == []


def test_a_request_is_answered_by_the_model_it_was_read_for(scorer: Scorer, tmp_path: Path) -> None:
    raw = random_raw(3)
    before = scorer.read(body(raw))
    (tmp_path / "next").mkdir()
    scorer.replace(ServedModel(make_world(0.1).model(tmp_path / "next"), "ctr", 2))
    after = scorer.read(body(raw))
    assert [each.model.version for each in (before, after)] == [1, 2]
    assert scorer.model.label == "ctr/2"
    for outcome, scale in zip(scorer.score([before, after]), (0.5, 0.1), strict=True):
        assert isinstance(outcome, torch.Tensor)
        expected = torch.sigmoid(make_world(scale).expected_logits(raw))
        assert torch.allclose(outcome, expected, atol=1e-6)
