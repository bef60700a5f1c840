"""Models of several tasks through `train`: two ranks are one plain program, and STEM keeps tables apart.

Ranks are started once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config import Recipe
from tests.distributed.test_loop_reference import (
    STEPS,
    Reference,
    assert_stored,
    rows_of_step,
)
from tests.helpers.runs import Start, Trained, alone, make_recipe, train_on, write_rows
from tests.helpers.tables import whole_tables

EQUAL = "embedding.sets=[" + ",".join(f"{{name='{n}', dim=4, init_std=0.1}}" for n in "abc") + "]"
UNEQUAL = "embedding.sets=[{name='a', dim=4}, {name='b', dim=8}, {name='c', dim=16}]"
LAYERS = "hidden=[8, 6], tower=[4]"
DAMPED = (
    "embedding.optimizer={name='adagrad', learning_rate=0.02, eps=1e-3}",
    "train.optimizer={name='adam', learning_rate=0.01, eps=1e-4}",
)
"""Optimizers that do not blow the rounding of tiny gradients up to the size of a step."""
CASES: dict[str, tuple[str, ...]] = {
    "stem": (EQUAL, f"model={{name='stem', shared_experts=2, num_layers=2, {LAYERS}}}"),
    "stem apart": (
        EQUAL,
        f"model={{name='stem', shared_experts=1, gate_input='projected', {LAYERS}}}",
        "embedding.layout='separate'",
        "embedding.sharding='row_wise'",
        "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.05}",
    ),
    "ame": (UNEQUAL, "embedding.init_std=0.1", f"model={{name='ame', {LAYERS}}}"),
    "crocodile": (
        "embedding.sets=[{name='a', dim=4, init_std=0.1}, {name='b', dim=4, init_std=0.1},"
        "{name='prior', dim=8, init_std=0.1, features=['user', 'item']}]",
        f"model={{name='crocodile', prior_set='prior', {LAYERS}, decorrelation="
        "{kind='covariance', weight=1.0, rows='all', scope='global'}}",
        *DAMPED,
    ),
    "dmoe": (
        UNEQUAL,
        "embedding.init_std=0.1",
        f"model={{name='dmoe', {LAYERS}, decorrelation="
        "{kind='correlation', weight=0.1, eps=0.01, rows='all', scope='global'}}",
        *DAMPED,
    ),
    "ple": (
        "embedding={dim=8, init_std=0.1}",
        f"model={{name='ple', shared_experts=2, {LAYERS}}}",
    ),
}
"""What two ranks train like a plain program in float64."""

ONLY_CLICK = "tasks=[{name='click', label='click'}, {name='buy', label='buy', weight=0.0}]"
ONLY_BUY = "tasks=[{name='click', label='click', weight=0.0}, {name='buy', label='buy'}]"
AUXILIARY = "model={name='stem_al', hidden=[8, 6], tower=[4]}"
ISOLATED: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "stem click": ((*CASES["stem"], ONLY_CLICK), {"a", "c"}),
    "stem buy": ((*CASES["stem"], ONLY_BUY), {"b", "c"}),
    "stem apart click": ((*CASES["stem apart"], ONLY_CLICK), {"a", "c"}),
    "stem released click": (
        (
            EQUAL,
            f"model={{name='stem', shared_experts=2, num_layers=2, strict_aftb=false, {LAYERS}}}",
            ONLY_CLICK,
        ),
        {"a", "b", "c"},
    ),
    "auxiliary alone": (
        (
            "embedding.sets=[{name='a', dim=4}, {name='b', dim=4}]",
            "embedding.init_std=0.1",
            AUXILIARY,
            ONLY_BUY,
        ),
        {"b"},
    ),
}
"""Runs with the loss of one task only, and the sets whose tables it moves; the others stay to the bit."""

MANY_TASKS = (
    "embedding.sets=[{name='a', dim=4}, {name='b', dim=8}, {name='c', dim=16}, {name='d', dim=32}]",
    f"model={{name='ame', {LAYERS}}}",
    "tasks=[" + ",".join(f"{{name='t{t}', label='click'}}" for t in range(128)) + "]",
    "evaluate.metric='t1/logloss'",
    "train.steps=20",
)


def recipe_of(data: Path, *changes: str) -> Recipe:
    return make_recipe(
        data,
        f"train.steps={STEPS}",
        "data.order='file'",
        "train.optimizer={name='adam', learning_rate=0.01, eps=1e-6}",
        *changes,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("multitask") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    """All cases on two ranks; those of one task's loss on one rank as well."""
    named = dict(CASES) | {name: changes for name, (changes, _) in ISOLATED.items()}
    starts = [
        Start(recipe_of(data, *changes), data.parent / name) for name, changes in named.items()
    ]
    done = dict(zip(named, train_on(2, starts), strict=True))
    single = [
        Start(recipe_of(data, *changes), data.parent / f"{name} alone")
        for name, (changes, _) in ISOLATED.items()
    ]
    names = [f"{name} alone" for name in ISOLATED]
    many = Start(recipe_of(data, *MANY_TASKS), data.parent / "many")
    return done | dict(zip([*names, "many"], alone([*single, many]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_the_plain_program_trains(
    data: Path, runs: dict[str, Trained], case: str
) -> None:
    reference = Reference(recipe_of(data, *CASES[case]))
    losses = [reference.step(rows_of_step(data, step)) for step in range(STEPS)]
    ours = torch.tensor(runs[case].losses)
    torch.testing.assert_close(ours, torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert_stored(runs[case], reference)


@pytest.mark.parametrize("ranks", ["", " alone"])
@pytest.mark.parametrize("case", ISOLATED)
def test_a_task_moves_the_tables_it_may_move_and_no_byte_of_others(
    data: Path, runs: dict[str, Trained], case: str, ranks: str
) -> None:
    changes, moved = ISOLATED[case]
    start = whole_tables(Reference(recipe_of(data, *changes)).spec)
    with CheckpointReader(runs[case + ranks].checkpoint) as checkpoint:
        for key, weight in start.items():
            table, set_name = key.split("/")
            now = checkpoint.table(table, set_name)
            assert torch.equal(now, weight) == (set_name not in moved), key


def test_ame_trains_128_tasks_on_4_sets(runs: dict[str, Trained]) -> None:
    run = runs["many"]
    assert run.steps == 20
    assert 0.7 < run.losses[0] / (128 * 0.6931) < 1.4
    assert sum(run.losses[-5:]) < 0.95 * sum(run.losses[:5])
    assert len([name for name in run.metrics if name.endswith("/auc")]) == 128
