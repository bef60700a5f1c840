"""Whole runs with managed tables: pipelined, resumed on other numbers of ranks, exported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from prismrec.checkpoint import CheckpointReader, latest, row_owners
from prismrec.config import Recipe
from prismrec.data.encode.ids import NULL_ID
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from prismrec.serving.parity import check_parity
from prismrec.train.run_files import RunFiles
from tests.helpers.runs import LANES, Start, Trained, alone, make_recipe, train_on, write_rows

HALF, WHOLE = 10, 20
USER = "embedding.tables.user={rows=16, ids={kind='managed', policy='distance_lfu', interval=3}}"
ITEM = (
    "embedding.tables.item={rows=8, ids={kind='managed', policy='lru', interval=4, min_count=2, "
    "ttl_steps=6}}"
)
TAGS = "embedding.tables.tags={rows=9, ids={kind='managed', policy='lfu', interval=5}}"
"""Fewer rows than ids, so that ids lose them; `tags` are weighted bags, `item` feeds two features."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("managed")
    write_rows(directory / "rows")
    return directory


def recipe(place: Path, steps: int, *more: str) -> Recipe:
    return make_recipe(place / "rows", USER, ITEM, f"train.steps={steps}", *more)


@cache
def uninterrupted(place: Path) -> Trained:
    """All steps on one rank."""
    (trained,) = alone([Start(recipe(place, WHOLE), place / "whole")])
    return trained


def start(place: Path, name: str, steps: int, attempt: str = "first") -> Start:
    return Start(recipe(place, steps), place / name, attempt)


def assert_goes_on(resumed: Trained, place: Path) -> None:
    whole = uninterrupted(place)
    assert resumed.losses == pytest.approx(whole.losses[HALF:], abs=2e-6)
    for name, values in whole.log.items():
        if name.startswith("ids/"):
            later = {step: value for step, value in values.items() if step > HALF}
            assert resumed.log[name] == later, name


def test_a_run_goes_on_on_another_number_of_ranks(place: Path) -> None:
    (first,) = alone([start(place, "from1", HALF)])
    two, *_ = trained = train_on(
        2,
        [
            start(place, "from2", HALF),
            start(place, "from1", WHOLE, "second"),  # 1 -> 2
            start(place, "whole2", WHOLE),
        ],
    )
    (back,) = alone([start(place, "from2", WHOLE, "second")])  # 2 -> 1
    whole = uninterrupted(place)
    assert first.losses == pytest.approx(whole.losses[:HALF])
    assert two.losses == pytest.approx(first.losses, abs=2e-6)
    assert trained[2].losses == pytest.approx(whole.losses, abs=5e-6)
    assert_goes_on(trained[1], place)
    assert_goes_on(back, place)
    assert back.metrics == pytest.approx(whole.metrics, abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_a_run_goes_on_on_four_ranks_and_back_on_two(place: Path) -> None:
    train_on(2, [start(place, "two", HALF)])
    resumed, _ = train_on(4, [start(place, "two", WHOLE, "second"), start(place, "four", HALF)])
    (back,) = train_on(2, [start(place, "four", WHOLE, "second")])
    assert_goes_on(resumed, place)
    assert_goes_on(back, place)


def test_the_log_says_what_happens_to_ids(place: Path) -> None:
    log = uninterrupted(place).log
    for table, interval in (("user", 3), ("item", 4)):
        numbers = {
            name: log[f"ids/{table}/{name}"]
            for name in ("rows_in_use", "lookups", "misses", "admissions", "evictions", "dropped")
        }
        assert all(list(values) == list(range(1, WHOLE + 1)) for values in numbers.values())
        for step in range(1, WHOLE + 1):
            now = {name: values[step] for name, values in numbers.items()}
            if step % interval:
                assert now["admissions"] == now["evictions"] == 0
            gained = now["admissions"] - now["evictions"]
            assert (
                now["rows_in_use"] - (numbers["rows_in_use"][step - 1] if step > 1 else 0) == gained
            )
            assert now["misses"] <= now["lookups"]
        assert sum(numbers["evictions"].values()) > 0
        assert numbers["misses"][1] == numbers["lookups"][1]
    assert "ids/tags/rows_in_use" not in log


def test_the_inference_copy_takes_raw_ids_and_says_what_the_trainer_says(place: Path) -> None:
    uninterrupted(place)
    files = RunFiles(place / "whole")
    checkpoint = latest(files.checkpoints)
    assert checkpoint is not None
    model = InferenceModel.load(bundle_of_checkpoint(checkpoint, place / "bundle"))
    held_out = read_held_out(files.held_out, recipe(place, WHOLE))
    assert check_parity(model.predict_logits(held_out.columns), held_out.logits) < 1e-6
    with CheckpointReader(checkpoint) as reader:
        owners = {int(each) for each in row_owners(reader, "user") if each != NULL_ID}
    assert 0 < len(owners) <= 16
    users = held_out.columns["user"].to_pylist()
    assert model.unknown_ids["user"] == sum(each not in owners for each in users) > 0
    again = model.predict_logits(held_out.columns)
    swapped = model.predict_logits(
        dict(held_out.columns) | {"user": [10**15 + 7] * len(users)}  # nobody has seen it
    )
    assert not torch.equal(again, swapped)


def test_every_table_may_be_managed_and_tracked(place: Path) -> None:
    more = ("embedding.track_touched=true", "embedding.optimizer.name='rowwise_adagrad'")
    coupled = (*more, "embedding.allow_coupled_sets=true")
    chosen = recipe(place, HALF, TAGS, *coupled)
    (one,) = alone([Start(chosen, place / "all")])
    assert all(loss < 3 for loss in one.losses)
    assert 0 < one.log["ids/tags/rows_in_use"][HALF] <= LANES * 3
    checkpoint = latest(RunFiles(place / "all").checkpoints)
    assert checkpoint is not None
    with CheckpointReader(checkpoint) as reader:
        for table in ("user", "item", "tags"):
            owned = row_owners(reader, table) != NULL_ID
            touched, weight = (reader.table(table, "wide", n) for n in ("touched", "weight"))
            assert (touched[owned] >= 0).all()
            assert (weight[owned] != 0).any(1).all()
            free = ~owned
            free.view(LANES, -1)[:, -1] = False  # the rows of unknown ids are trained
            assert not weight[free].any()
