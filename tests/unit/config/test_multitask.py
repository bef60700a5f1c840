"""Recipes of models of several tasks: sets and tasks that go together, and the page's examples."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prismrec.config import Recipe, UserError, from_dict
from prismrec.config.models.multitask import MULTITASK
from prismrec.data.schema import Column, DataSchema
from prismrec.models import build_model, fields_of, spec_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "multitask.md"
SCHEMA = DataSchema(
    name="shop",
    columns={
        "user_id": Column(kind="id", num_ids=10),
        "item_id": Column(kind="id", num_ids=10),
        "price": Column(kind="number"),
        "click": Column(kind="label"),
        "like": Column(kind="label"),
    },
)


def recipe(model: dict[str, Any], embedding: dict[str, Any] | None = None, **more: Any) -> Recipe:
    return from_dict(
        {
            "name": "shop",
            "data": {"path": "shop"},
            "features": {"sparse": ["user_id", "item_id"], "dense": ["price"]},
            "embedding": embedding or {},
            "model": model,
            "tasks": [{"name": each, "label": each} for each in ("click", "like")],
            **more,
        }
    )


EXAMPLES = [
    block
    for block in re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    if "[model]" in block
]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: tomllib.loads(block)["model"]["name"])
def test_examples_of_the_page_are_models(block: str) -> None:
    given = tomllib.loads(block)
    made = recipe(given["model"], given.get("embedding"))
    assert build_model(made.model, fields_of(made, spec_of(made, SCHEMA))) is not None


def test_the_page_has_an_example_or_a_line_for_every_model() -> None:
    assert all(f"`{name}`" in PAGE.read_text() for name in MULTITASK)


SETS = {"num_sets": 3, "dim": 8}
UNEQUAL = {"sets": [{"name": "a", "dim": 4}, {"name": "b", "dim": 8}, {"name": "c", "dim": 8}]}


@pytest.mark.parametrize(
    ("model", "embedding", "message"),
    [
        ({"name": "mmoe"}, SETS, "embedding.num_sets: model.name = 'mmoe' reads one .* are 3"),
        (
            {"name": "stem"},
            {"num_sets": 2},
            "'stem' needs 3 embedding sets, one for each of 2 tasks",
        ),
        ({"name": "stem"}, UNEQUAL, "model.gate_input: 'sum' adds the vectors of a task's own"),
        (
            {"name": "stem", "owners": {"click": "set0", "like": "set2"}},
            SETS,
            "model.owners.like: 'set2' is no set that a task can own",
        ),
        (
            {"name": "stem", "owners": {"click": "set0"}},
            SETS,
            "model.owners: task 'like' has no set; name one of set0, set1",
        ),
        (
            {"name": "stem", "owners": {"click": "set0", "like": "set0"}},
            SETS,
            "model.owners: no task owns the set 'set1'",
        ),
        (
            {"name": "stem", "owners": {"click": "set0", "like": "set1", "liek": "set1"}},
            SETS,
            "model.owners.liek: there is no such task; did you mean 'like'",
        ),
        (
            {"name": "stem_al"},
            SETS,
            "'stem_al' needs 2 embedding sets, .* set embedding.num_sets = 2",
        ),
        ({"name": "stem_al", "main_task": "clik"}, {"num_sets": 2}, "model.main_task: .* 'click'"),
        ({"name": "ame"}, {}, "'ame' needs 2 embedding sets or more"),
        (
            {"name": "ame", "interactions": {"set4": "fm"}},
            SETS,
            "model.interactions.set4: no set is called that",
        ),
        (
            {"name": "ame", "routing": "prior", "task_sizes": {"click": 5.0}},
            SETS,
            "model.task_sizes: routing = 'prior' needs a size for each task, click, like, got click",
        ),
        ({"name": "ame", "task_sizes": {"click": 5.0}}, SETS, "only routing = 'prior' reads them"),
        (
            {"name": "ame", "routing": "static", "gate_hidden": [8]},
            SETS,
            "model.gate_hidden: routing = 'static' has numbers for gates",
        ),
        (
            {"name": "crocodile", "prior_set": "sets0"},
            SETS,
            "model.prior_set: no set is called that; did you mean 'set0'",
        ),
        (
            {"name": "crocodile", "prior_set": "set0"},
            {"num_sets": 2},
            "'crocodile' needs 2 .* are 2",
        ),
        (
            {"name": "hetero_me", "experts": [{"set": "a"}, {"set": "d"}]},
            UNEQUAL,
            r"model.experts\[1\].set: no set is called that",
        ),
        (
            {"name": "hetero_me", "experts": [{"set": "a"}, {"set": "b"}]},
            UNEQUAL,
            "model.experts: no expert reads the set 'c'",
        ),
        (
            {"name": "dmoe", "gate": "mean", "gate_hidden": [8]},
            UNEQUAL,
            "model.gate_hidden: gate = 'mean' has no layers",
        ),
    ],
)
def test_sets_and_tasks_that_do_not_go_with_the_model(model, embedding, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(model, embedding)


def test_rowwise_optimizers_are_refused_on_packed_sets_of_stem() -> None:
    """One number of state for a row of several sets would let a task change another's steps."""
    coupled = {**SETS, "optimizer": {"name": "rowwise_adagrad"}}
    with pytest.raises(UserError, match="rowwise_adagrad scales a row as a whole, which couples"):
        recipe({"name": "stem"}, coupled)
    assert recipe({"name": "stem"}, {**coupled, "layout": "separate"}) is not None


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UserError, match=r"(?s)'stem' needs 3.*evaluate.metric: unknown metric"):
        recipe({"name": "stem"}, {"num_sets": 2}, evaluate={"metric": "clik/auc"})
