"""The chapter on histories: models with planted time beside a world whose histories fade."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prismrec.analysis.correlation import Counts, count_behaviours, question_of
from prismrec.analysis.report.chapter import Chapter, Plot
from prismrec.analysis.report.correlation import Asked, correlation_chapter
from prismrec.analysis.subject import Subject
from prismrec.config import UserError, from_dict
from prismrec.data.source import open_data
from prismrec.data.world import write_world
from prismrec.data.world_truth import WorldOptions
from prismrec.models import spec_of
from prismrec.models.sequence import TIM
from prismrec.serving.inference import build_head
from tests.unit.analysis.histories import opened
from tests.unit.analysis.subjects import make_subject, quiet

CATEGORIES, POSITIONS, WIDTH = 6, 10, 8
OWN, STEEP = 2.0, 0.4
"""Length of a category's vector, and how much the logit falls from one position to the next."""
TARGET = 0
"""The most frequent target category of this world."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("correlation") / "world"
    options = WorldOptions(
        num_users=200, num_items=120, num_categories=CATEGORIES, opposed_share=0.0
    )
    write_world(out, 16_000, 4, 1, options)
    return out


def _planted(world: Path, name: str, slope: float, sets: int = 1, peak: int = 1) -> Subject:
    """A TIM of orthogonal categories whose logits fall by `slope` with every position from `peak`."""
    recipe = from_dict(
        {
            "name": name,
            "data": {"path": str(world)},
            "features": {
                "sparse": ["user_id", "category"],
                "sequences": [
                    {
                        "name": "history",
                        "behaviours": [{"column": "history_categories", "target": "category"}],
                        "gaps": "history_times",
                    }
                ],
            },
            "embedding": {"sets": [{"name": f"s{i}", "dim": WIDTH} for i in range(sets)]},
            "model": {
                "name": "deepfm",
                "hidden": [4],
                "sequence": {"kind": "tim", "encoding": "position"},
            },
            "tasks": [{"name": "like", "label": "like"}],
        }
    )
    spec = spec_of(recipe, open_data(str(world)).schema)
    tables = {
        (table.name, each.name): torch.zeros(table.rows, each.dim)
        for table in spec.tables
        for each in spec.sets_of(table)
    }
    for at in range(sets):
        tables["category", f"s{at}"][:CATEGORIES] = OWN * torch.eye(CATEGORIES, WIDTH)
    head = build_head(recipe, spec)
    module = next(each for each in head.modules() if isinstance(each, TIM))
    assert module.temporal.positions is not None
    with torch.no_grad():
        table = module.temporal.positions
        table.zero_()
        table[..., 0, -1] = 1.0
        falls = -slope * math.sqrt(WIDTH) * (torch.arange(table.shape[-2] - 1) - peak + 1).abs()
        if sets > 1:  # the second set knows no time
            table[0, 1:, -1] = falls
        else:
            table[1:, -1] = falls
    return opened(world.parent / name, recipe, tables, head, most=3000).subject


@pytest.fixture(scope="module")
def subjects(world: Path) -> list[Subject]:
    return [
        make_subject(world.parent / "plain"),
        _planted(world, "fading", STEEP),
        _planted(world, "blind", 0.0),
        _planted(world, "backwards", -STEEP),
        _planted(world, "two", STEEP, sets=2),
        _planted(world, "middle", STEEP, peak=4),
    ]


@pytest.fixture(scope="module")
def chapter(world: Path, subjects: list[Subject]) -> Chapter:
    return correlation_chapter(subjects, Asked(str(world)), quiet)


def _rows(plot: Plot, **where: object) -> list[dict[str, object]]:
    named = [dict(zip(plot.numbers.columns, row, strict=True)) for row in plot.numbers.rows]
    return [row for row in named if all(row[key] == value for key, value in where.items())]


@pytest.fixture(scope="module")
def counts(world: Path, subjects: list[Subject]) -> Counts:
    question = question_of(subjects[1])
    assert question is not None
    return count_behaviours(question, str(world), quiet)


def test_the_data_are_counted_over_the_first_sequence(counts: Counts, chapter: Chapter) -> None:
    bits = counts.information()
    assert len(chapter.plots[0].numbers.rows) == bits.size
    for row, cell in zip(_rows(chapter.plots[0]), np.ndindex(bits.shape), strict=True):
        assert row["mutual information, bits"] == bits[cell]
        assert row["rows with it, like 1"] == counts.behaviours[cell][1]
        assert row["enough rows"] == ("yes" if counts.is_supported()[cell] else "no")
        assert 0 < row["fading: behaviours seen"] <= counts.support()[cell]


def test_the_maps_are_those_planted(chapter: Chapter) -> None:
    """z = 1(same) OWN^2 / sqrt W - STEEP (p - 1), r = (OWN^2 if same, slope (p - 1))."""
    z, norms = np.zeros((6, 10)), np.zeros((6, 10))
    steps = np.arange(POSITIONS)
    z[:] = -STEEP * steps
    norms[:] = STEEP * math.sqrt(WIDTH) * steps
    z[0] += OWN**2 / math.sqrt(WIDTH)  # the most frequent category stands first
    norms[0] = np.hypot(OWN**2, norms[0])
    weights = np.exp((z - z.mean()) / z.std())
    expected = weights / weights.sum() * norms
    found = [row["fading: map"] for row in _rows(chapter.plots[0], target=TARGET)]
    np.testing.assert_allclose(np.reshape(found, (6, 10)), expected, atol=1e-7)
    heat = chapter.plots[0].traces
    assert [trace["z"][0][0] for trace in heat[:3]] == pytest.approx([1, 1, 1])
    assert heat[4]["z"][0][0] == 1
    assert heat[3]["z"][0][0] < heat[3]["z"][0][9]


def test_the_scores_tell_the_models_apart(chapter: Chapter) -> None:
    scores = {
        name: [row["score"] for row in _rows(chapter.plots[2], model=name)]
        for name in ("fading", "blind", "backwards", "two", "middle")
    }
    assert np.mean(scores["fading"][:5]) > 0.9
    assert scores["blind"] == [0] * CATEGORIES
    assert np.mean(scores["backwards"][:5]) < -0.4
    for row in _rows(chapter.plots[2], model="fading"):
        assert row["score of items"] == pytest.approx(row["score"])
        assert row["score of tables"] == pytest.approx(row["score"])
    first = _rows(chapter.plots[2], model="two")[0]
    assert first["score by set"] == f"s0 {scores['fading'][0]:.3f}; s1 0.000"
    bars = chapter.plots[2].traces
    assert [trace["model"] for trace in bars] == [1, 2, 3, 4, 5]
    assert bars[1]["y"] == [0] * CATEGORIES


def test_the_summary_says_it_in_words(counts: Counts, chapter: Chapter) -> None:
    bits = counts.information()
    own = bits[np.arange(6), np.arange(6)][:5].mean(0)
    assert chapter.summary[0].startswith(
        "In all rows of the data set, a newest behaviour of the target's own `category` says "
        f"{own[0]:.4f} bits of `like`, "
    )
    assert f"at position 10 {own[-1] / own[0]:.0%} of that is left" in chapter.summary[0]
    others = [bits[t, i, 0] for t in range(5) for i in range(6) if i != t]
    assert (
        f", {own[0] / np.mean(others):.1f} times what one of another category" in chapter.summary[0]
    )
    told = dict(
        zip(("fading", "blind", "backwards", "two", "middle"), chapter.summary[1:], strict=True)
    )
    score = np.mean([row["score"] for row in _rows(chapter.plots[2], model="fading")][:5])
    assert told["fading"] == (
        f"fading follows the data over positions: score {score:.2f}, mean of the 5 most "
        "frequent target categories."
    )
    assert told["blind"].startswith(
        "blind makes nothing of the position of a behaviour: score 0.00,"
    )
    assert told["backwards"].startswith("backwards weighs positions against what the data say")
    assert f"; set `s0` by itself {score:.2f}." in told["two"]
    assert told["middle"].startswith("middle hardly follows the data over positions: score ")


def test_data_in_which_positions_do_not_matter_are_said_to_be_so(
    world: Path, subjects: list[Subject], chapter: Chapter
) -> None:
    assert not chapter.missing
    told = [row["data tell positions apart"] for row in _rows(chapter.plots[2], model="fading")]
    assert told == [*["yes"] * 5, "no"]  # of the last there are 658 rows
    question = question_of(subjects[1])
    assert question is not None
    # An hour of the day has too few rows.
    few = replace(question, conditions=("hour == 3", "day == 1"))
    found = correlation_chapter(subjects[1:2], Asked(str(world), few), quiet)
    assert any("do not tell positions apart beyond chance" in each for each in found.missing)
    assert {row["data tell positions apart"] for row in _rows(found.plots[2])} == {"no"}
    assert found.summary[0].endswith("older ones, up to chance, say as much.")
    assert found.summary[1].startswith(
        "fading: the data do not tell positions apart, so that its score says nothing (score "
    )


def test_another_target_category(world: Path, subjects: list[Subject]) -> None:
    chapter = correlation_chapter(subjects[1:2], Asked(str(world), target=4), quiet)
    assert chapter.plots[0].title.endswith("is category 4")
    assert chapter.plots[0].traces[1]["z"][chapter.plots[0].traces[1]["y"].index("4")][0] == 1
    with pytest.raises(
        UserError, match="no row that counts has 77 as 'category'.*most frequent is 0"
    ):
        correlation_chapter(subjects[1:2], Asked(str(world), target=77), quiet)


def test_what_cannot_be_said(world: Path, subjects: list[Subject]) -> None:
    none = correlation_chapter(subjects[:1], Asked(str(world)), quiet)
    assert not none.plots
    assert none.missing[0].startswith("No model reads the history as a sequence")
    few = correlation_chapter(subjects[1:2], Asked(str(world), target=5), quiet)
    (sentence,) = few.missing
    assert sentence.startswith("Of category 5 there are 658 rows, too few at some positions")
