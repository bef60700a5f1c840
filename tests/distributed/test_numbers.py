"""Numbers: the same losses and tables on one rank and on two, and the exported model from raw numbers.

Ranks are started once: all kinds are trained in one call.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from tests.helpers.runs import Start, Trained, alone, make_recipe, train_on, write_rows

STEPS = 6
RANGE = "levels=64, quantiser='linear', low=-2.0, high=2.0"


def numbers(*encodings: str) -> str:
    """The columns `x` and `y`, each with an encoding."""
    named = [
        f"{{name='{name}', encoding={{{each}}}}}"
        for name, each in zip("xy", encodings, strict=True)
    ]
    return f"features.numbers=[{', '.join(named)}]"


KINDS: dict[str, tuple[str, ...]] = {
    "given ranges": (
        numbers(f"kind='mnse', {RANGE}", "kind='mnse', quantiser='asinh', low=-2.0, high=2.0"),
        "features.dense=[]",
        "embedding.tables.mnse_b2={sharding='row_wise'}",
    ),
    "without states": (
        numbers(f"kind='mnse', {RANGE}, mode='paper', bases=[4]", f"kind='mnse', {RANGE}"),
        "embedding.tables.mnse_b4={sharding='data_parallel'}",
        "embedding.layout='separate'",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("numbers")
    write_rows(place / "rows")
    return place


def starts(place: Path, ranks: int) -> dict[str, Start]:
    return {
        kind: Start(
            make_recipe(place / "rows", f"train.steps={STEPS}", *changes),
            place / f"{kind} {ranks}".replace(" ", "-"),
        )
        for kind, changes in KINDS.items()
    }


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[int, dict[str, Trained]]:
    """Every kind on one rank and on two."""
    one, two = starts(place, 1), starts(place, 2)
    return {
        1: dict(zip(one, alone(list(one.values())), strict=True)),
        2: dict(zip(two, train_on(2, list(two.values())), strict=True)),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_what_one_trains(trained: dict[int, dict[str, Trained]], kind: str) -> None:
    one, two = trained[1][kind], trained[2][kind]
    assert two.parameters["world_size"] == 2
    assert len(set(one.losses)) == STEPS
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-5)
    np.testing.assert_allclose(two.metrics["click/auc"], one.metrics["click/auc"], rtol=1e-3)
    with CheckpointReader(one.checkpoint) as ours, CheckpointReader(two.checkpoint) as theirs:
        keys = [key for key in ours.manifest.tables if key.partition("/")[0] not in IDS]
        for key in keys:
            first, second = (each.table(*key.split("/")) for each in (ours, theirs))
            torch.testing.assert_close(second, first, rtol=1e-4, atol=2e-6)
            assert ours.table(*key.split("/"), "accumulator").any(), "its rows were updated"
    assert keys or kind in DENSE


IDS = ("user", "item", "tags")
DENSE: tuple[str, ...] = ()
"""Kinds whose numbers look nothing up."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_model_says_what_the_trainer_says_of_raw_numbers(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path, kind: str
) -> None:
    start = starts(place, 2)[kind]
    held_out = read_held_out(start.directory / "held_out.parquet", start.recipe)
    assert held_out.columns["x"].null_count > 0
    model = InferenceModel.load(
        bundle_of_checkpoint(trained[2][kind].checkpoint, tmp_path / "model")
    )
    logits = model.predict_logits(held_out.columns)
    torch.testing.assert_close(logits, held_out.logits, rtol=0, atol=2e-6)


def test_numbers_out_of_range_are_told_from_missing_ones(
    trained: dict[int, dict[str, Trained]],
) -> None:
    """The columns `x` and `y` are missing in a twelfth of the rows and beyond 2 in a twentieth."""
    log = trained[2]["given ranges"].log
    missing, beyond = (log[f"ids/mnse_b3/{name}"][STEPS] for name in ("missing", "out_of_range"))
    assert 0.03 < missing < 0.15
    assert 0.01 < beyond < 0.1
    assert log["ids/mnse_b3/unknown"][STEPS] == pytest.approx(missing + beyond)


def test_a_served_model_tells_odd_numbers_apart(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path
) -> None:
    checkpoint = trained[1]["given ranges"].checkpoint
    model = InferenceModel.load(bundle_of_checkpoint(checkpoint, tmp_path / "model"))
    values = [None, float("inf"), 1e9, 2.0, -2.0, -1e9, 0.1, 0.1 + 1e-9]
    rows = len(values)
    same = {"user": [1] * rows, "item": [2] * rows, "y": [0.5] * rows}
    bags = {"tags": [[1]] * rows, "tag_weights": [[1.0]] * rows, "seen": [[]] * rows}
    logits = model.predict_logits({**same, **bags, "x": values})[:, 0].tolist()
    assert logits[1] == logits[2], "above the range"
    assert logits[6] == logits[7], "one level"
    assert len(set(logits)) == rows - 2
    assert model.unknown_ids["x::b2"] == 4
