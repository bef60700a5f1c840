"""Layers that know a label and layers that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.analysis import discriminability
from prismrec.analysis.discriminability import (
    NearestCenter,
    fit_codes,
    fit_quantiles,
    layer_information,
    split_of,
)
from tests.unit.analysis.subjects import drawn_labels, make_subject, quiet
from tests.unit.serving.world import random_raw

ROWS = 1600
MODEL: dict[str, Any] = {
    "model": {"name": "ame", "hidden": [4], "tower": [3]},
    "embedding": {"sets": [{"name": "one", "dim": 4}, {"name": "wide", "dim": 8}]},
}


def test_clusters_are_found_again() -> None:
    generator = torch.Generator().manual_seed(1)
    centers = torch.randn(6, 5, generator=generator) * 10
    drawn = torch.randint(0, 6, (900,), generator=generator)
    vectors = centers[drawn] + torch.randn(900, 5, generator=generator)
    codes = fit_codes(vectors[:400], 6)
    found = codes(vectors[400:])
    assert {(int(a), int(b)) for a, b in zip(drawn[400:], found, strict=True)} == {
        (label, int(codes(centers[label : label + 1]))) for label in range(6)
    }
    again = fit_codes(vectors[:400], 6)
    assert isinstance(codes, NearestCenter)
    assert isinstance(again, NearestCenter)
    assert torch.equal(codes.centers, again.centers)


def test_numbers_are_cut_at_their_quantiles() -> None:
    values = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    codes = fit_quantiles(values, 4)
    assert codes.edges.tolist() == [25, 50, 75]
    assert codes(torch.tensor([[-5.0], [24.9], [25.0], [80.0]])).tolist() == [0, 0, 1, 3]
    tied = fit_quantiles(torch.tensor([0.0] * 90 + [1.0] * 10), 4)
    assert tied.edges.tolist() == []
    assert fit_quantiles(torch.tensor([0.0] * 60 + [1.0] * 40), 4).edges.tolist() == [1.0]


def test_a_sample_is_cut_into_rows_to_fit_on_and_rows_that_count() -> None:
    assert split_of(400) == discriminability.Split(100, 3)
    assert split_of(100_000) == discriminability.Split(6400, 64)
    assert split_of(200) is None


def test_layers_know_what_they_were_given_and_nothing_of_a_coin(tmp_path: Path) -> None:
    columns = random_raw(ROWS)
    blank = make_subject(tmp_path / "a", columns, batch=300, **MODEL)
    with torch.no_grad():
        logits = torch.cat([blank.model(each.inputs)[0] for each in blank.samples()])
    labels = drawn_labels(ROWS)
    labels[:, 0] = (logits[:, 0] > logits[:, 0].median()).float()
    labels[::7, 0] = torch.nan
    subject = make_subject(tmp_path / "b", columns, labels, batch=300, **MODEL)
    found = {each.point.name: each for each in layer_information(subject, quiet)}
    click, coin = found["logit of click"].by_task
    assert found["logit of click"].classes == 12
    assert click.rows == int((~labels[400:, 0].isnan()).sum())
    assert coin.rows == 1200
    assert click.share > 0.9
    assert 0.1 < found["tower of click: layer 1"].by_task[0].share <= 1
    assert found["wide: fields"].by_task[0].share < click.share
    for each in found.values():
        assert abs(each.by_task[1].share) < 0.03


def test_layers_that_do_not_fit_together_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(tmp_path, random_raw(900), batch=130, **MODEL)
    seen: list[str] = []
    whole = layer_information(subject, quiet)
    monkeypatch.setattr(discriminability, "FIT_NUMBERS", 30 * 225)
    parts = layer_information(subject, lambda what, done, total: seen.append(what))
    assert parts == whole
    assert any("pass 3 of" in each for each in seen)


def test_few_rows_say_nothing(tmp_path: Path) -> None:
    assert layer_information(make_subject(tmp_path, **MODEL), quiet) == []
