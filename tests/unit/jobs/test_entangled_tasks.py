"""Entangled tasks recovered: trained on a world whose tasks oppose each other, sets say whose they are.

Everything is real: the world, the loop, the models read back from their checkpoints, the chapter. What
tells the pairs apart here are mostly the lengths of vectors: a network behind them may turn angles to any use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismrec.analysis.report.chapter import Cell, Chapter
from prismrec.analysis.report.entanglement import entanglement_chapter
from prismrec.config import Recipe, from_dict
from prismrec.data.world import write_world
from prismrec.data.world_truth import WorldOptions
from prismrec.jobs.subjects import opened_subjects
from tests.helpers.runs import Start, alone

OPPOSED = WorldOptions(
    num_users=100,
    num_items=60,
    opposed_share=1.0,
    history_strength=0.0,
    daily_persistence=1.0,
    like_bias=0.0,
    finish_bias=0.0,
    new_item_share=0.0,
)
"""For every user what speaks for `like` speaks against `finish`; users and items are all there is."""
LAYERS: dict[str, Any] = {"hidden": [16], "tower": [8]}
BOTH = ("like", "finish")
STEM = {"name": "stem", "shared_experts": 1, "specific_experts": 3, "gate_hidden": [8], **LAYERS}
PLE = {"name": "ple", "num_layers": 1, "shared_experts": 1, "specific_experts": 1, **LAYERS}
ALONE = {"name": "shared_bottom", **LAYERS}
SETS = {"stem": ("of_like", "of_finish", "shared")}


def recipe(data: Path, seed: int, model: dict[str, Any], tasks: tuple[str, ...]) -> Recipe:
    names = SETS.get(model["name"], ("only",))
    return from_dict(
        {
            "name": "entangled",
            "seed": seed,
            "data": {
                "path": str(data),
                "global_batch_size": 256,
                "lanes": 4,
                "splits": {"train": ["day <= 5"], "valid": ["day == 5"], "test": ["day == 6"]},
            },
            "features": {"sparse": ["user_id", "item_id"]},
            "embedding": {
                "sets": [{"name": name, "dim": 8} for name in names],
                "optimizer": {"name": "adagrad", "learning_rate": 0.1},
            },
            "model": model,
            "tasks": [{"name": task, "label": task} for task in tasks],
            "train": {
                "device": "cpu",
                "precision": "fp32",
                "epochs": 4,
                "log_every": 1000,
                "optimizer": {"name": "adam", "learning_rate": 5e-3},
            },
            "evaluate": {"bootstrap": 0, "every_steps": 1_000_000},
            "checkpoint": {"keep_best": False},
        }
    )


SEEDS = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SEEDS)
def found(
    tmp_path_factory: pytest.TempPathFactory, uri: str, request: pytest.FixtureRequest
) -> tuple[Chapter, dict[str, str]]:
    """The chapter, and the name of each model in it."""
    folder = tmp_path_factory.mktemp("entangled")
    data = folder / "world"
    write_world(data, 12_000, 7, 1, OPPOSED)
    chosen = {
        "like": (ALONE, ("like",)),
        "finish": (ALONE, ("finish",)),
        "ple": (PLE, BOTH),
        "stem": (STEM, BOTH),
    }
    starts = [
        Start(recipe(data, request.param, *each), folder / name) for name, each in chosen.items()
    ]
    trained = [str(each.checkpoint) for each in alone(starts)]
    with opened_subjects(trained, str(data), "all", 12_000, uri) as opened:
        subjects = [each.subject for each in opened]
        chapter = entanglement_chapter(subjects, ("user_id", "item_id"), lambda *_: None)
        return chapter, {s.name: name for s, name in zip(subjects, chosen, strict=True)}


def rows_of(found: tuple[Chapter, dict[str, str]], title: str) -> list[tuple[Cell, ...]]:
    """Numbers of a plot, with the names that models have here."""
    chapter, names = found
    plot = next(each for each in chapter.plots if each.title == title)
    return [(names.get(str(row[0]), str(row[0])), *row[1:]) for row in plot.numbers.rows]


def test_sets_of_a_task_see_pairs_as_its_own_model_does(
    found: tuple[Chapter, dict[str, str]],
) -> None:
    rows = {row[:2]: row for row in rows_of(found, "What every set makes of contradictory pairs")}
    separation = {key: float(str(row[2])) for key, row in rows.items()}
    assert separation["like", "only"] == 1
    assert separation["finish", "only"] == 0
    assert separation["stem", "of_like"] > 0.7
    assert separation["stem", "of_finish"] < 0.4
    for entangled in (("ple", "only"), ("stem", "shared")):
        assert 0.36 < separation[entangled] < 0.64
    # The two hills lie further apart in sets of a task's own than in those that both tasks move.
    apart = {key: float(str(row[5])) for key, row in rows.items()}
    shared = max(apart["ple", "only"], apart["stem", "shared"])
    assert min(apart["stem", "of_like"], apart["stem", "of_finish"]) > 1.5 * shared
    told = {task: f"as the model of {task} alone does, AUC" for task in BOTH}
    for task, of_set in (("like", "of_like"), ("finish", "of_finish")):
        assert any(f"set `{of_set}` tells" in s and told[task] in s for s in found[0].summary)


def test_orders_of_the_two_tasks_are_unrelated(found: tuple[Chapter, dict[str, str]]) -> None:
    rows = {row[0]: float(str(row[2])) for row in rows_of(found, "Diversity Index")}
    assert rows["like and finish, each alone"] == pytest.approx(0.16, abs=0.03)
    assert 0.08 < rows["stem"] < 0.16


def test_losses_of_opposed_tasks_conflict_where_vectors_are_shared(
    found: tuple[Chapter, dict[str, str]],
) -> None:
    rows = {row[:3]: row for row in rows_of(found, "Cosine of the tasks' gradients, by set")}
    assert rows["stem", "of_like", "all"][5:] == (None, None, None, 0)
    assert rows["stem", "of_finish", "all"][5:] == (None, None, None, 0)
    for shared in (("ple", "only", "all"), ("stem", "shared", "all")):
        assert -1 < float(str(rows[shared][5])) < 1
        assert int(str(rows[shared][8])) > 10_000
    assert sum("has no gradient at all" in sentence for sentence in found[0].summary) == 2


def test_gains_are_those_of_the_users(found: tuple[Chapter, dict[str, str]]) -> None:
    rows = rows_of(found, "Gain over models of one task, by what users lean to")
    of_stem = [row for row in rows if row[:2] == ("stem", "like")]
    assert sum(int(str(row[4])) for row in of_stem) <= 100
    assert sum(int(str(row[5])) for row in of_stem) <= 12_000
    assert all(0.5 < float(str(row[7])) < 1 for row in of_stem)
    assert found[0].missing == ()
