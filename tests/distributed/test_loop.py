"""The same losses on 1, 2 and 4 ranks, across resumes, and to the bit where nothing changes.

Ranks are started twice only: what one call can hold is trained one after another.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from prismrec.checkpoint.manifest import read_manifest
from tests.helpers.runs import (
    BATCH,
    ROWS,
    Start,
    Trained,
    alone,
    make_recipe,
    rows_seen,
    train_on,
    write_rows,
)

LENGTH = ("train.steps=26",)
STOP = 9
"""Steps before a resume: the middle of the first epoch, which has 21 steps."""
STOPPED = (f"train.steps={STOP}",)

BATCH_NORM = ("model.norm='batch'",)
"""Its moments are those of the global batch."""
WORLDS = {
    "layer-packed-auto": (),
    "batch-packed-auto": BATCH_NORM,
    "layer-separate-auto": ("embedding.layout='separate'",),
    "batch-separate-table_wise": (
        *BATCH_NORM,
        "embedding.layout='separate'",
        "embedding.sharding='table_wise'",
    ),
    "packed-data_parallel": ("embedding.sharding='data_parallel'",),
    "packed-row_wise": ("embedding.sharding='row_wise'",),
    "packed-column_wise": ("embedding.sharding='column_wise'",),
    "mixed": (
        "embedding.tables.user={layout='separate', sharding='row_wise', learning_rate=0.05}",
        "embedding.tables.item={sharding='column_wise'}",
        "embedding.tables.tags={sharding='data_parallel'}",
    ),
    "linear-separate-rowwise": (
        "model={name='deepfm', hidden=[8], merge='gate'}",
        "embedding.layout='separate'",
        "embedding.sharding='row_wise'",
        "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.02, eps=1e-4}",
    ),
    "replicated-adam": (
        "embedding.sharding='data_parallel'",
        "embedding.optimizer={name='adam', learning_rate=0.02, weight_decay=0.1}",
    ),
    "time-batch": ("data.order='time'", *BATCH_NORM),
}
"""What is trained on 1, 2 and 4 ranks."""

EVERYTHING = (
    *BATCH_NORM,
    "train.ema_decay=0.9",
    "train.clip_norm=0.5",
    "train.schedule={warmup_steps=3, decay='cosine', decay_steps=30, min_factor=0.1}",
    "embedding.tables.user={learning_rate=0.05}",
)
"""Everything that has a state of its own."""
ROW_STATE = (
    *EVERYTHING,
    "embedding.layout='separate'",
    "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.02, eps=1e-4}",
    "train.optimizer={name='adagrad', learning_rate=0.02, eps=1e-4}",
)
PLATEAU = (
    *BATCH_NORM,
    "evaluate={every_steps=3, metric='click/logloss'}",
    "train.schedule={decay='plateau', plateau_factor=0.5}",
    "embedding.sharding='data_parallel'",
    "embedding.optimizer={name='adam', learning_rate=0.3}",
)
"""Rates that fall by what evaluations say, and Adam in tables that are whole on every rank."""
PACKED = (*EVERYTHING, "embedding.sharding='table_wise'")
ELSEWHERE = {
    "row_wise": ("embedding.layout='separate'", "embedding.sharding='row_wise'"),
    "data_parallel": ("embedding.sharding='data_parallel'",),
}
"""Layouts and placements that a packed, table-wise run goes on with."""
RANDOM = (*EVERYTHING, "model.dropout=0.3")
"""What must come out the same to the bit."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("loop") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    """Every run of this file, in the order in which they go on from each other."""
    place = data.parent
    done: dict[str, Trained] = {}

    def start(name: str, directory: str, *changes: str) -> tuple[str, Start]:
        recipe = make_recipe(data, *LENGTH, *changes)
        return name, Start(recipe, place / directory, name.replace(" ", "-"))

    def worlds(size: int) -> list[tuple[str, Start]]:
        return [start(f"{n} {size}", f"{n}-{size}", *changes) for n, changes in WORLDS.items()]

    def together(size: int, named: list[tuple[str, Start]]) -> None:
        starts = [each for _, each in named]
        results = alone(starts) if size == 1 else train_on(size, starts)
        done.update(zip((name for name, _ in named), results, strict=True))

    together(
        1,
        [
            *worlds(1),
            start("whole", "whole", *PACKED),
            start("whole row state", "whole-row-state", *ROW_STATE),
            start("whole plateau", "whole-plateau", *PLATEAU),
            start("plateau without", "plateau-without", *PLATEAU, "train.schedule={}"),
            *(start(f"{n} begun", n, *PACKED, *STOPPED) for n in ELSEWHERE),
        ],
    )
    together(
        2,
        [
            *worlds(2),
            start("begun on 2", "resumed", *PACKED, *STOPPED),
            start("row state begun on 2", "resumed-row-state", *ROW_STATE, *STOPPED),
            start("plateau begun on 2", "resumed-plateau", *PLATEAU, *STOPPED),
            *(start(f"{n} resumed", n, *PACKED, *change) for n, change in ELSEWHERE.items()),
            start("random", "random", *RANDOM),
            start("random again", "random-again", *RANDOM),
            start("random begun", "random-resumed", *RANDOM, *STOPPED),
            start("random resumed", "random-resumed", *RANDOM),
            start("evaluated", "evaluated", *RANDOM, "evaluate.every_steps=4"),
            start("saved", "saved", *RANDOM, "checkpoint.every_steps=3"),
        ],
    )
    together(
        1,
        [
            start("resumed on 1", "resumed", *PACKED),
            start("row state resumed on 1", "resumed-row-state", *ROW_STATE),
            start("plateau resumed on 1", "resumed-plateau", *PLATEAU),
        ],
    )
    together(4, worlds(4))
    return done


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("size", [2, 4])
def test_losses_do_not_depend_on_the_number_of_ranks(
    runs: dict[str, Trained], name: str, size: int
) -> None:
    one, many = runs[f"{name} 1"], runs[f"{name} {size}"]
    assert len(one.losses) == 26
    assert many.parameters["world_size"] == size
    for task in ("", "click/", "buy/"):
        np.testing.assert_allclose(
            list(many.log[f"train/{task}loss"].values()),
            list(one.log[f"train/{task}loss"].values()),
            rtol=1e-5,
            atol=1e-7,
            err_msg=task,
        )
    np.testing.assert_allclose(
        [many.metrics["click/logloss"], many.metrics["buy/pcoc"]],
        [one.metrics["click/logloss"], one.metrics["buy/pcoc"]],
        rtol=1e-5,
    )


def test_placements_and_layouts_do_not_change_the_losses(runs: dict[str, Trained]) -> None:
    base = runs["layer-packed-auto 2"].losses
    assert base[0] != base[1]
    for name in ("layer-separate-auto", "packed-data_parallel", "packed-row_wise"):
        np.testing.assert_allclose(runs[f"{name} 2"].losses, base, rtol=1e-5, err_msg=name)


def test_an_epoch_has_every_row_once(data: Path, runs: dict[str, Trained]) -> None:
    for name in ("whole", "resumed on 1", "row_wise resumed"):
        seen = rows_seen(runs[name].checkpoint, make_recipe(data))
        assert sorted(seen[0]) == list(range(ROWS["train"])), name
        assert len(seen[1]) == len(set(seen[1])) == 5 * BATCH
        state = read_manifest(runs[name].checkpoint).extra["state"]
        assert state["rows_seen"] == ROWS["train"] + 5 * BATCH
    begun = rows_seen(runs["begun on 2"].checkpoint.parent / f"step-{STOP:08d}", make_recipe(data))
    assert Counter(begun[0]).most_common(1)[0][1] == 1
    assert len(begun[0]) == STOP * BATCH


@pytest.mark.parametrize(
    ("whole", "begun", "resumed"),
    [
        ("whole", "begun on 2", "resumed on 1"),
        ("whole row state", "row state begun on 2", "row state resumed on 1"),
        ("whole plateau", "plateau begun on 2", "plateau resumed on 1"),
        ("whole", "row_wise begun", "row_wise resumed"),
        ("whole", "data_parallel begun", "data_parallel resumed"),
    ],
)
def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(
    runs: dict[str, Trained], whole: str, begun: str, resumed: str
) -> None:
    assert list(runs[resumed].log["train/loss"]) == list(range(STOP + 1, 27))
    losses = [*runs[begun].losses, *runs[resumed].losses]
    np.testing.assert_allclose(losses, runs[whole].losses, rtol=1e-5)
    for metric in ("click/logloss", "buy/logloss", "click/pcoc"):  # of the averaged weights
        assert runs[resumed].metrics[metric] == pytest.approx(runs[whole].metrics[metric], rel=1e-5)


def test_rates_fall_from_the_first_evaluation_that_is_worse(runs: dict[str, Trained]) -> None:
    run, without = runs["whole plateau"], runs["plateau without"]
    scores = list(run.log["valid/click/logloss"].values())
    first = next(n for n in range(1, len(scores)) if scores[n] >= min(scores[:n]))
    assert 0 < first <= STOP // 3 - 1, "the resumed run starts before the first cut"
    steps = 3 * (first + 1) + 1  # the step after that evaluation still starts from the same weights
    assert run.losses[:steps] == without.losses[:steps]
    assert all(a != b for a, b in zip(run.losses[steps:], without.losses[steps:], strict=True))


def test_one_recipe_gives_one_run_to_the_bit(runs: dict[str, Trained]) -> None:
    first = runs["random"]
    assert first.losses != runs["whole"].losses
    assert runs["random again"].losses == first.losses
    assert str(runs["random again"].metrics) == str(first.metrics)  # a NaN is not itself
    assert [*runs["random begun"].losses, *runs["random resumed"].losses] == first.losses
    assert str(runs["random resumed"].metrics) == str(first.metrics)


def test_an_evaluation_does_not_change_training(runs: dict[str, Trained]) -> None:
    evaluated = runs["evaluated"]
    assert list(evaluated.log["valid/click/auc"]) == [4, 8, 12, 16, 20, 24, 26]
    assert len(set(evaluated.log["valid/click/logloss"].values())) == 7
    assert evaluated.losses == runs["random"].losses


def test_a_checkpoint_does_not_change_training(runs: dict[str, Trained]) -> None:
    assert runs["saved"].losses == runs["random"].losses
    assert str(runs["saved"].metrics) == str(runs["random"].metrics)
