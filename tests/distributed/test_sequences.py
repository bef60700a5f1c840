"""Sequences on one rank and on two: losses, metrics and tables, whatever the placement and however empty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config.sequence_tables import SEQUENCE_KINDS
from tests.helpers.histories import make_recipe, write_histories
from tests.helpers.runs import Start, Trained, alone, train_on

KINDS = {kind: (f"embedding.sharding='{kind}'",) for kind in SEQUENCE_KINDS}
MIXED = (
    "embedding.tables.item={sharding='row_wise', layout='separate'}",
    "embedding.tables.category={sharding='column_wise'}",
    "embedding.tables.user={sharding='table_wise'}",
)
"""Tables of one collection in several ways."""
MODELS = {
    "din": ("model.sequence={kind='din', hidden=[8], activation='dice'}",),
    "dare": (
        "embedding.sets=[{name='wide', dim=8, init_std=0.1}, "
        "{name='att', dim=4, init_std=0.1, features=['item', 'category']}]",
        "model.sequence={kind='dare', attention='att', encoding='both', keep=2}",
    ),
    "row-wise state": (
        "embedding.layout='separate'",
        "embedding.sharding='row_wise'",
        "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.05}",
    ),
    "fp16 tables": (
        "embedding.data_type='fp16'",
        "embedding.optimizer={name='sgd', learning_rate=0.05}",
    ),
    "managed users": ("embedding.tables.user={ids='managed', rows=64}",),
    "two rows an id": (
        "embedding.tables.item={ids={kind='hash', hashes=2}, rows=11}",
        "embedding.track_touched=true",
    ),
}
SHORT, MIDDLE, LENGTH = ((f"train.steps={steps}",) for steps in (2, 4, 6))
MOVES = {"column_wise": "row_wise", "data_parallel": "column_wise"}
"""Where two ranks end what one rank began table-wise, and where they went on with it in between."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Every run of this file, by name."""
    place = tmp_path_factory.mktemp("sequences")
    data = {
        "full": write_histories(place / "full"),
        "half": write_histories(place / "half", is_half_empty=True),
    }
    done: dict[str, Trained] = {}

    def start(name: str, rows: str, *changes: str, directory: str = "") -> tuple[str, Start]:
        plain = name.replace(" ", "-")
        return name, Start(make_recipe(data[rows], *changes), place / (directory or plain), plain)

    def together(size: int, named: list[tuple[str, Start]]) -> None:
        starts = [each for _, each in named]
        results = alone(starts) if size == 1 else train_on(size, starts)
        done.update(zip((name for name, _ in named), results, strict=True))

    together(
        1,
        [
            *(start(f"{rows} 1", rows, *LENGTH) for rows in data),
            *(start(f"{name} 1", "full", *LENGTH, *more) for name, more in MODELS.items()),
            start(
                "bf16 1",
                "full",
                *LENGTH,
                "train.precision='bf16'",
                "evaluate.frequency_of='item'",
            ),
            *(
                start(f"{end} begun", "full", *SHORT, *KINDS["table_wise"], directory=end)
                for end in MOVES
            ),
        ],
    )
    together(
        2,
        [
            *(start(f"{k} {rows} 2", rows, *LENGTH, *KINDS[k]) for k in KINDS for rows in data),
            start("mixed full 2", "full", *LENGTH, *MIXED),
            *(start(f"{name} 2", "full", *LENGTH, *more) for name, more in MODELS.items()),
            *(
                start(f"{end} moved", "full", *MIDDLE, *KINDS[kind], directory=end)
                for end, kind in MOVES.items()
            ),
            *(start(f"{end} ended", "full", *LENGTH, *KINDS[end], directory=end) for end in MOVES),
        ],
    )
    return done


def _state(run: Trained) -> dict[str, Tensor]:
    """All tensors in a run's checkpoint: tables and their optimizer's state, dense weights."""
    with CheckpointReader(run.checkpoint) as reader:
        found = reader.dense()
        for key, entry in reader.manifest.tables.items():
            for name in entry.tensors:
                found[f"{key}/{name}"] = reader.table(*key.split("/"), name)
        return found


def _check_same(one: Trained, other: Trained) -> None:
    assert other.losses == pytest.approx(one.losses[-len(other.losses) :], abs=2e-6)
    assert other.metrics == pytest.approx(one.metrics, abs=1e-5, nan_ok=True)
    expected, found = _state(one), _state(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-5, msg=key)


@pytest.mark.parametrize("rows", ["full", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_placement_trains_as_one_rank_does(
    runs: dict[str, Trained], kind: str, rows: str
) -> None:
    """In `half` no row of the first rank has a behaviour, at any step."""
    _check_same(runs[f"{rows} 1"], runs[f"{kind} {rows} 2"])


def test_tables_of_one_collection_may_lie_in_different_ways(runs: dict[str, Trained]) -> None:
    _check_same(runs["full 1"], runs["mixed full 2"])


@pytest.mark.parametrize("name", MODELS)
def test_other_modules_and_ids_train_on_two_ranks_as_on_one(
    runs: dict[str, Trained], name: str
) -> None:
    _check_same(runs[f"{name} 1"], runs[f"{name} 2"])


@pytest.mark.parametrize("end", MOVES)
def test_a_checkpoint_moves_between_placements_and_numbers_of_ranks(
    runs: dict[str, Trained], end: str
) -> None:
    _check_same(runs["full 1"], runs[f"{end} ended"])


def test_behaviours_move_rows_that_no_target_has(runs: dict[str, Trained]) -> None:
    """The unknown row of the items: targets are missing at times, behaviours are of id 23 at times."""
    accumulator = _state(runs["full 1"])["item/wide/accumulator"]
    assert (accumulator.sum(1) > 0).all()


def test_rows_that_behaviours_look_up_count_as_touched(runs: dict[str, Trained]) -> None:
    found = [_state(runs[f"two rows an id {size}"])["item/wide/touched"] for size in (1, 2)]
    assert torch.equal(*found)
    assert (found[0] >= 1).all()


def test_ids_of_behaviours_are_told_of_like_others(runs: dict[str, Trained]) -> None:
    run = runs["bf16 1"]
    assert run.log["data/unknown_ids/history/items"][6] > 0  # id 23 has no row
    assert any(name.startswith("click/auc/frequency=") for name in run.metrics)


def test_bf16_changes_little(runs: dict[str, Trained]) -> None:
    assert runs["bf16 1"].losses == pytest.approx(runs["full 1"].losses, abs=2e-2)
    assert runs["bf16 1"].losses != runs["full 1"].losses


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_foresees_the_memory_of_every_rank(runs: dict[str, Trained], kind: str) -> None:
    log = runs[f"{kind} full 2"].log
    (predicted,), (held,) = (
        list(log[f"memory/{name}"].values()) for name in ("predicted_bytes", "table_bytes")
    )
    assert predicted == held > 0
