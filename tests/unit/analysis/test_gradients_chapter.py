"""The chapter says what was planted: rare positives, and which of two models is steeper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.analysis.landscape import Slice
from prismrec.analysis.report.chapter import Chapter, Plot
from prismrec.analysis.report.gradients import gradients_chapter
from prismrec.analysis.subject import Subject
from tests.unit.analysis.subjects import drawn_labels, make_subject, quiet
from tests.unit.serving.world import random_raw

ROWS = 400
SETS = [{"name": "only", "dim": 4}]
QUICK = Slice(points=3, span=0.2, rows=100)


def _rare(folder: Path, scale: float, name: str) -> Subject:
    """One row in 20 is a positive of `click`, and the model knows no more than that."""
    labels = torch.zeros(ROWS, 2)
    labels[::20, 0], labels[::2, 1] = 1, 1
    subject = make_subject(
        folder,
        random_raw(ROWS),
        labels,
        200,
        embedding={"sets": SETS},
        model={"name": "dnn", "hidden": [4]},
    )
    head: Any = subject.model
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(scale)
        head.first_order.bias.copy_(torch.tensor([-2.9444390, 0]))  # p = 0.05, 0.5
    return replace(subject, name=name)


def _plot(chapter: Chapter, title: str) -> Plot:
    return next(plot for plot in chapter.plots if plot.title.startswith(title))


def test_negatives_of_rare_positives_are_hardly_pushed(tmp_path: Path) -> None:
    chapter = gradients_chapter([_rare(tmp_path, 1e-3, "plain")], quiet, QUICK)
    means = {row[1:4]: row for row in _plot(chapter, "How hard each loss").numbers.rows}
    alone = means["click", "cross-entropy", "negatives"]
    assert alone[4] == 380
    assert alone[5] == pytest.approx(0.05, rel=0.01)
    pairs = means["click", "0.9 cross-entropy + 0.1 RankNet", "negatives"]
    # sigma(0) / 2 beside 0.05: B / N- pairs' halves
    assert pairs[5] == pytest.approx(0.9 * 0.05 + 0.1 * 0.5 * 400 / 380, rel=0.01)
    assert chapter.summary[0].startswith(
        "cross-entropy pushes a negative, on average, by 0.0500 for `click`, where 5.0% of the rows are "
        "positives (2.0 times as hard with pairs), 0.5000 for `buy`, where 50.0% of the rows"
    )
    bars = _plot(chapter, "How hard each loss").traces
    assert (bars[0]["name"], bars[0]["y"]) == ("BCE, negatives", ["click", "buy"])
    assert bars[0]["x"] == pytest.approx([0.05, 0.5], rel=0.01)
    curve = _plot(chapter, "Gradients of click by").numbers
    filled = [row for row in curve.rows if row[2:4] == ("cross-entropy", "negatives") and row[6]]
    assert sum(int(row[6] or 0) for row in filled) == 380
    for row in filled:
        assert float(row[4] or 0) <= float(row[7] or 0) < float(row[5] or 0)
    json.dumps([[plot.traces, plot.layout] for plot in chapter.plots], allow_nan=False)


def test_the_flatter_of_two_models_is_named_first(tmp_path: Path) -> None:
    steep, flat = _rare(tmp_path / "a", 1.0, "steep"), _rare(tmp_path / "b", 0.1, "flat")
    chapter = gradients_chapter([steep, flat], quiet, QUICK)
    told = chapter.summary[-1]
    assert told.startswith("Moving every row of the dense weights by 20% of its length")
    assert told.index("of flat from") < told.index("of steep from")
    grid = {
        row[:3]: row[3] for row in _plot(chapter, "Loss around the weights of flat").numbers.rows
    }
    with torch.no_grad():
        logits = torch.cat([flat.model(each.inputs)[0] for each in flat.samples()][:1])
    labels = next(flat.samples()).labels
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert grid["cross-entropy", 0.0, 0.0] == pytest.approx(float(expected), rel=1e-5)
    lines = _plot(chapter, "How fast the loss rises").numbers.rows
    assert {row[4] for row in lines if row[2] == 0.0} == {0.0}
    titles = [plot.title for plot in chapter.plots]
    assert "Gradients of field vectors on negatives, steep" in titles
    assert any(each.startswith("flat: of the field vectors, `") for each in chapter.summary)


def test_a_model_without_sets_has_no_field_vectors(tmp_path: Path) -> None:
    labels = drawn_labels(40)
    subject = make_subject(tmp_path, random_raw(40), labels, 40, embedding={}, model={"name": "lr"})
    chapter = gradients_chapter([subject], quiet, QUICK)
    assert not any("field vectors" in plot.title for plot in chapter.plots)
    lines = _plot(chapter, "How fast the loss rises").numbers.rows
    assert len({row[3] for row in lines}) > 1  # the weights of numeric columns


def test_a_sample_without_positives_is_told(tmp_path: Path) -> None:
    subject = make_subject(
        tmp_path,
        random_raw(40),
        torch.zeros(40, 2),
        40,
        embedding={"sets": SETS},
        model={"name": "dnn", "hidden": [4]},
    )
    chapter = gradients_chapter([subject], quiet, QUICK)
    assert sum("no positives of" in each for each in chapter.missing) == 2
