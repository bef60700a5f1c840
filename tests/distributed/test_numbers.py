"""Numbers: the same losses and tables on one rank and on two, and the exported model from raw numbers.

Ranks are started once: all kinds are trained in one call.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.checkpoint import verify
from prismrec.checkpoint.exchange import export_tables
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import UserError
from prismrec.data.fit_numbers import fit_numbers, write_statistics
from prismrec.data.source import open_data
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from tests.helpers.runs import (
    NUM_ITEMS,
    NUM_USERS,
    Start,
    Trained,
    alone,
    make_recipe,
    train_on,
    write_rows,
)

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
    "fitted": (
        numbers("kind='mnse', levels=64", "kind='quantile_bucket', buckets=8"),
        "features.dense=['y']",
        "features.statistics='FILES/fitted.json'",
    ),
    "other ways": (
        "features.numbers=[{name='a', column='x', encoding={kind='autodis', buckets=4}}, "
        "{name='b', column='x', encoding={kind='piecewise_linear', bins=6}}, "
        "{name='c', column='x', encoding={kind='periodic', frequencies=4, low=-2.0, high=2.0}}, "
        "{name='d', column='y', encoding={kind='value', scale='cdf', bias=true}}, "
        "{name='e', column='y', encoding='log_bucket'}]",
        "features.statistics='FILES/other.json'",
    ),
    "similarities": (
        "features.numbers=[{name='near', similarity={left={column='user', vectors='FILES/users.npz'}, "
        "right={column='item', vectors='FILES/items.npz'}}, encoding={kind='mnse', levels=64}}, "
        "{name='liked', similarity={left={column='item', vectors='FILES/items.npz'}, "
        "right={column='seen', vectors='FILES/items.npz'}, history='max'}, "
        "encoding={kind='mnse', quantiser='cosine'}}]",
        "features.statistics='FILES/near.json'",
    ),
}


FITTED = ("fitted", "other ways", "similarities")
"""Kinds with statistics of the training rows."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, vectors of some of its users and items, and the statistics of each kind."""
    place = tmp_path_factory.mktemp("numbers")
    source = open_data(write_rows(place / "rows"))
    (place / "files").mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("users", NUM_USERS), ("items", NUM_ITEMS)):
        ids = rng.permutation(count)[: count - 5]
        vectors = rng.normal(size=(len(ids), 6)).astype(np.float32)
        np.savez(place / f"files/{name}.npz", ids=ids, vectors=vectors)
    for kind in FITTED:
        start = starts(place, 1)[kind]
        statistics = Path(str(start.recipe.features.statistics))
        write_statistics(fit_numbers(start.recipe, source), statistics)
    return place


def starts(place: Path, ranks: int) -> dict[str, Start]:
    return {
        kind: Start(
            make_recipe(
                place / "rows",
                f"train.steps={STEPS}",
                *(change.replace("FILES", str(place / "files")) for change in changes),
            ),
            place / f"{kind} {ranks}".replace(" ", "-"),
        )
        for kind, changes in KINDS.items()
    }


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[int, dict[str, Trained]]:
    """Every kind on one rank and on two, after which the recipes' files are taken away."""
    one, two = starts(place, 1), starts(place, 2)
    done = {
        1: dict(zip(one, alone(list(one.values())), strict=True)),
        2: dict(zip(two, train_on(2, list(two.values())), strict=True)),
    }
    (place / "files").rename(place / "kept")
    return done


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
        assert keys
        first, second = ours.dense(), theirs.dense()
        for name, weight in first.items():
            torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-5)


IDS = ("user", "item", "tags")


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_model_says_what_the_trainer_says_of_raw_numbers(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path, kind: str
) -> None:
    start = starts(place, 2)[kind]
    held_out = read_held_out(start.directory / "held_out.parquet", start.recipe)
    assert all(
        held_out.columns[name].null_count > 0 for name in ("x", "y") if name in held_out.columns
    )
    model = InferenceModel.load(
        bundle_of_checkpoint(trained[2][kind].checkpoint, tmp_path / "model")
    )
    logits = model.predict_logits(held_out.columns)
    torch.testing.assert_close(logits, held_out.logits, rtol=0, atol=2e-6)


def test_files_are_copied_into_run_checkpoint_and_model(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path
) -> None:
    names = {
        "near.json": "statistics-0000.json",
        "users.npz": "vectors-0000.npz",
        "items.npz": "vectors-0001.npz",
    }
    run = starts(place, 2)["similarities"].directory
    checkpoint = trained[2]["similarities"].checkpoint
    model = bundle_of_checkpoint(checkpoint, tmp_path / "model")
    for name, copy in names.items():
        content = (place / "kept" / name).read_bytes()
        for directory in (run, checkpoint, model):
            assert (directory / copy).read_bytes() == content
    manifest = verify(checkpoint)
    assert sorted(manifest.copies) == sorted(names.values())
    assert (
        manifest.extra["files"]["features.statistics"]
        == manifest.copies["statistics-0000.json"].sha256
    )
    damaged = model / "vectors-0001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"vectors-0001.npz: differs from its SHA-256"):
        InferenceModel.load(model)


def test_rows_of_numbers_are_exported_by_row(
    trained: dict[int, dict[str, Trained]], tmp_path: Path
) -> None:
    with CheckpointTables(trained[2]["given ranges"].checkpoint) as tables:
        facts = {each.table: each.ids for each in tables.facts()}
        assert (facts["mnse_b2"], facts["user"]) == ("number", "direct")
        written = export_tables(tables, [("mnse_b2", "wide")], tmp_path / "out", lambda *_: None)
        weights = tables.reader.table("mnse_b2", "wide")
    found = pq.read_table(written[0].directory)
    assert found.column("row").to_pylist() == list(range(len(weights)))
    assert np.stack(found.column("vector").to_pylist()).tolist() == weights.tolist()


def test_a_run_goes_on_with_the_same_statistics_only(
    trained: dict[int, dict[str, Trained]], place: Path
) -> None:
    start = starts(place, 1)["fitted"]
    train = start.recipe.train.model_copy(update={"steps": STEPS + 1})
    more = start.recipe.model_copy(update={"train": train})
    shutil.copytree(place / "kept", place / "files")
    file = place / "files/fitted.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(
        UserError, match=r"statistics: .*fitted.json is not the file of statistics that"
    ):
        alone([Start(more, start.directory, "changed")])
    shutil.copy(place / "kept/fitted.json", file)
    assert alone([Start(more, start.directory, "same")])[0].steps == STEPS + 1
    shutil.rmtree(place / "files")


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
