"""What features say alone and in pairs, on labels that are made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismrec.analysis import feature_information as module
from prismrec.analysis.feature_information import (
    bag_keys,
    categories,
    feature_columns,
    feature_information,
    pair_correlation,
    pair_strengths,
)
from prismrec.analysis.pair_blocks import pair_blocks
from prismrec.analysis.subject import FieldRows
from tests.unit.analysis.subjects import drawn_labels, make_subject, quiet
from tests.unit.serving.world import random_raw

ROWS = 2500


def _columns(rows: int = ROWS) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        **random_raw(rows),
        "user_id": rng.integers(0, 4, rows).tolist(),
        "item": rng.integers(0, 4, rows).tolist(),
    }


def test_two_features_together_say_what_neither_says_alone(tmp_path: Path) -> None:
    columns = _columns()
    labels = drawn_labels(ROWS)
    user, item = torch.tensor(columns["user_id"]), torch.tensor(columns["item"])
    labels[:, 0] = (user % 2 != item % 2).float()
    labels[::5, 0] = torch.nan
    found = feature_information(make_subject(tmp_path, columns, labels, batch=500), quiet)
    assert found.names == ("user_id", "item", "hist", "tags", "age", "is_new")
    assert (found.num_categories, found.num_pair_categories, found.rows) == (25, 5, ROWS)
    assert float(found.entropies[0]) == pytest.approx(math.log(2), abs=0.01)
    for alone in found.alone:
        assert abs(alone[0].corrected) < 0.01
        assert alone[0].rows == 2000
        assert alone[1].rows == ROWS
    assert float(found.pairs[0, 0, 1]) == pytest.approx(math.log(2), abs=0.01)
    assert torch.equal(found.pairs.nan_to_num(), found.pairs.mT.nan_to_num())
    rest = found.pairs.clone()
    rest[0, 0, 1] = rest[0, 1, 0] = 0
    assert float(rest.nan_to_num().abs().max()) < 0.01


def test_pairs_of_a_label_that_is_too_rare_are_left_out(tmp_path: Path) -> None:
    columns, labels = _columns(), drawn_labels(ROWS)
    labels[:, 0] = 0
    labels[:20, 0] = 1  # fewer than 5 x 5 pairs of categories, more than 4 x 4
    found = feature_information(make_subject(tmp_path, columns, labels, batch=500), quiet)
    at = {name: place for place, name in enumerate(found.names)}
    assert math.isnan(float(found.pairs[0, at["hist"], at["age"]]))
    assert math.isfinite(float(found.pairs[0, at["user_id"], at["item"]]))
    assert math.isfinite(float(found.pairs[1, at["hist"], at["age"]]))


def test_a_number_and_a_bag_say_what_the_label_is_made_of(tmp_path: Path) -> None:
    columns = _columns()
    labels = drawn_labels(ROWS)
    labels[:, 0] = (torch.tensor(columns["age"]) > torch.tensor(columns["age"]).median()).float()
    labels[:, 1] = torch.tensor([float(len(bag) == 0) for bag in columns["tags"]])
    found = feature_information(make_subject(tmp_path, columns, labels, batch=500), quiet)
    by_name = dict(zip(found.names, found.alone, strict=True))
    assert by_name["age"][0].share > 0.9
    assert by_name["tags"][1].share > 0.99
    assert abs(by_name["age"][1].share) < 0.03


def test_bags_are_one_category_whatever_their_order() -> None:
    rows = torch.tensor([1, 2, 2, 1, 6, 6, 6, 1])
    keys = bag_keys(FieldRows(rows, torch.tensor([2, 2, 2, 1, 0, 1, 0])))
    assert keys[0] == keys[1]
    assert keys[4] == keys[6] == 0
    assert len(set(keys[[0, 2, 3, 4, 5]].tolist())) == 5


def test_frequent_values_stay_themselves_and_the_rest_share() -> None:
    keys = torch.tensor([50] * 9 + [7] * 8 + [31] * 7 + list(range(100, 140)))
    codes = categories(keys, 4)
    assert codes.max() == 3
    assert len({int(codes[0]), int(codes[9]), int(codes[17])}) == 3
    assert set(codes[24:].tolist()) == {3}
    few = categories(keys[:24], 4)
    assert len(set(few.tolist())) == 3


def test_rows_beyond_the_bound_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 70)
    found = feature_columns(make_subject(tmp_path, _columns(200), batch=30), quiet)
    assert len(found.labels) == 70
    assert {len(each) for each in (*found.keys, *found.values)} == {70}


def test_the_strength_of_a_pair_is_what_it_adds(tmp_path: Path) -> None:
    sets = [{"name": "only", "dim": 4}]
    subject = make_subject(tmp_path, embedding={"sets": sets}, model={"name": "fmfm"})
    (blocks,) = pair_blocks(subject)
    (found,) = pair_strengths(subject, [blocks])
    head: Any = subject.model
    weight = head.branches[0].experts.groups[0].interactions[0].weight
    X = torch.cat([each.inputs.sets[0] for each in subject.samples()])
    # pair (1, 3) is number 5 + 2 of (0, 1), .., (0, 5), (1, 2), (1, 3)
    expected = torch.einsum("bk,kl,bl->b", X[:, 1], weight[6], X[:, 3]).detach().abs().mean()
    assert float(found[1, 3]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found[3, 1]) == pytest.approx(float(expected), rel=1e-5)
    assert bool(found.diagonal().isnan().all())


def test_weights_that_follow_the_information_correlate_with_it(tmp_path: Path) -> None:
    sets = [{"name": "only", "dim": 4}]
    subject = make_subject(tmp_path, embedding={"sets": sets}, model={"name": "fwfm"})
    informed = torch.rand(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    informed = (informed + informed.t()).fill_diagonal_(math.nan)
    head: Any = subject.model
    weight = head.branches[0].experts.groups[0].interactions[0].weight
    first, second = torch.triu_indices(6, 6, 1)
    with torch.no_grad():
        weight.copy_(3 * informed[first, second] + 1)
    (blocks,) = pair_blocks(subject)
    assert pair_correlation(blocks.norms(), informed) == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        weight.copy_(9 - informed[first, second])
    (turned,) = pair_blocks(subject)
    assert pair_correlation(turned.norms(), informed) == pytest.approx(-1, abs=1e-6)
    with torch.no_grad():
        weight.fill_(2)
    assert pair_correlation(pair_blocks(subject)[0].norms(), informed) is None


def test_a_correlation_of_known_numbers() -> None:
    learned, informed = torch.zeros(3, 3).double(), torch.zeros(3, 3).double()
    for at, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        learned[i, j], learned[j, i] = 2 * [1.0, 2.0, 4.0][at], 0
        informed[i, j] = informed[j, i] = [1.0, 3.0, 2.0][at]
    expected = float(np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])
    assert pair_correlation(learned, informed) == pytest.approx(expected)
    learned[0, 1] = math.nan
    assert pair_correlation(learned, informed) is None
