"""The chapter says of planted models what was planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismrec.analysis.report.chapter import Chapter, Plot
from prismrec.analysis.report.discriminability import discriminability_chapter
from prismrec.analysis.subject import Subject
from tests.unit.analysis.subjects import drawn_labels, make_subject, quiet
from tests.unit.serving.world import random_raw

ROWS = 1200
SETS = [{"name": "only", "dim": 4}]


def _planted(folder: Path) -> Subject:
    """`click` is the parity of user and item together, `buy` is that of the item."""
    rng = np.random.default_rng(7)
    columns: dict[str, Any] = {
        **random_raw(ROWS),
        "user_id": rng.integers(0, 4, ROWS).tolist(),
        "item": rng.integers(0, 4, ROWS).tolist(),
    }
    user, item = torch.tensor(columns["user_id"]), torch.tensor(columns["item"])
    labels = drawn_labels(ROWS)
    labels[:, 0], labels[:, 1] = (user % 2 != item % 2).float(), (item % 2).float()
    subject = make_subject(
        folder, columns, labels, 300, embedding={"sets": SETS}, model={"name": "fwfm"}
    )
    head: Any = subject.model
    with torch.no_grad():
        weight = head.branches[0].experts.groups[0].interactions[0].weight
        weight.fill_(0.1)
        weight[0] = -5  # of user and item
        weight[-1] = 50  # of two numeric columns, which do not count
    return subject


def _plot(chapter: Chapter, title: str) -> Plot:
    return next(plot for plot in chapter.plots if plot.title.startswith(title))


def test_a_model_whose_weights_found_the_pair_that_says_most(tmp_path: Path) -> None:
    chapter = discriminability_chapter([_planted(tmp_path)], quiet)
    assert chapter.key == "discriminability"
    assert chapter.missing == []
    features = {(row[0], row[1]): row for row in _plot(chapter, "What features").numbers.rows}
    assert features["item", "buy"][5] == pytest.approx(1, abs=0.01)
    assert abs(float(features["item", "click"][5] or 0)) < 0.02
    pairs = {
        row[:2]: row
        for row in _plot(chapter, "What pairs of features say about click").numbers.rows
    }
    assert pairs["user_id", "item"][3] == pytest.approx(1, abs=0.03)
    learned = {row[:2]: row for row in _plot(chapter, "Learned pairs").numbers.rows}
    assert learned["item", "user_id"][2] == pytest.approx(5)
    assert learned["hist", "tags"][2] == pytest.approx(0.1)
    follows = {row[2]: row for row in _plot(chapter, "Whether learned").numbers.rows}
    assert float(follows["click"][3] or 0) > 0.98
    assert float(follows["buy"][3] or 0) < 0.6
    text = " ".join(chapter.summary)
    assert "`item` 99.8" in text
    assert "what is behind loses it" in text
    assert "the weights of pairs of set only, expert 0, FieldWeighted correlate" in text
    assert "the sizes of what pairs add by" in text
    json.dumps([[plot.traces, plot.layout] for plot in chapter.plots], allow_nan=False)


def test_several_models_are_side_by_side(tmp_path: Path) -> None:
    first = _planted(tmp_path / "a")
    second = replace(
        make_subject(
            tmp_path / "b",
            random_raw(200),
            embedding={"sets": SETS},
            model={"name": "dnn", "hidden": [4]},
        ),
        name="small",
    )
    chapter = discriminability_chapter([first, second], quiet)
    assert [each for each in chapter.missing if each.startswith("small: 200 rows are too few")]
    assert [each for each in chapter.missing if "weigh no pairs of fields" in each]
    titles = [plot.title for plot in chapter.plots]
    assert "What features say alone, ctr" in titles
    assert "What features say alone, small" in titles
    assert not any("layers of small" in title for title in titles)
    of_models, of_features = chapter.summary[:-2], chapter.summary[-2:]
    assert of_models
    assert all(each.startswith("ctr: ") for each in of_models)  # nothing is known of the small one
    assert of_features[0].startswith("The features that say most alone, ctr: `")
    assert of_features[1].startswith("The features that say most alone, small: `")


def test_equal_features_are_shown_once_and_labels_that_do_not_vary_are_told(tmp_path: Path) -> None:
    labels = drawn_labels(600)
    labels[:, 1] = 0
    columns = random_raw(600)
    both = [
        replace(
            make_subject(
                tmp_path / name, columns, labels, embedding={"sets": SETS}, model={"name": name}
            ),
            name=name,
        )
        for name in ("fm", "fwfm")
    ]
    chapter = discriminability_chapter(both, quiet)
    titles = [plot.title for plot in chapter.plots]
    assert sum(title.startswith("What features say alone") for title in titles) == 1
    assert [title for title in titles if title.startswith("What the layers")] == [
        "What the layers of fm know",
        "What the layers of fwfm know",
    ]
    assert sum("same label of `buy`" in each for each in chapter.missing) == 2
    layers = _plot(chapter, "What the layers of fm").numbers
    assert layers.columns[:4] == ("model", "layer", "part", "task")
    assert {row[9] for row in layers.rows if row[3] == "buy"} == {0.0}


def test_what_is_noise_is_told_and_not_drawn(tmp_path: Path) -> None:
    labels = drawn_labels(1200)
    labels[:, 1] = 0
    labels[-3:, 1] = 1  # nine classes
    subject = make_subject(
        tmp_path, random_raw(1200), labels, embedding={"sets": SETS}, model={"name": "fwfm"}
    )
    chapter = discriminability_chapter([subject], quiet)
    (told,) = [each for each in chapter.missing if "layers are left out for `buy`" in each]
    assert "3 rows with its rarer label count" in told
    assert any("what pairs of features say about `buy` is left out" in e for e in chapter.missing)
    assert not any("`buy`" in each and "knows most" in each for each in chapter.summary)
    assert not any("say about buy" in plot.title for plot in chapter.plots)
    (bars,) = [t for t in _plot(chapter, "What the layers").traces if t["name"] == "buy"]
    assert set(bars["x"]) == {None}
