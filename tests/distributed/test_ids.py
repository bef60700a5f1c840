"""Every kind of ids: the same losses on one rank and on two, and the exported model from raw ids.

Ranks are started once: all kinds are trained in one call.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prismrec.checkpoint import read_manifest, verify
from prismrec.config import UserError
from prismrec.data.encode.tables import id_tables
from prismrec.data.semantic.files import write_codes
from prismrec.data.source import open_data
from prismrec.data.vocabulary import VocabularyFile, write_vocabularies
from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
from prismrec.serving.inference import InferenceModel
from tests.helpers.runs import (
    Start,
    Trained,
    alone,
    make_recipe,
    rows_seen,
    train_on,
    write_rows,
)

STEPS = 8
CODED = np.arange(0, 25, 2)
"""Items that have semantic codes: those of even number."""
RAW_AND_SEMANTIC = """[
    'user', 'item', {name='item_sid', column='item', table='sid'},
    {name='seen_sid', column='seen', table='sid'}, {name='tags', weights='tag_weights'},
]"""
TRAINING = ("fold == 0",)


def table(name: str, options: str) -> str:
    return f"embedding.tables.{name}={{{options}}}"


def kinds(vocabularies: Path) -> dict[str, tuple[str, ...]]:
    """What each recipe changes. `item` is a single id and a bag, `tags` a weighted bag."""
    two = "ids={kind='hash', hashes=2}"
    users, items = (f"ids={{kind='vocabulary', path='{vocabularies}/{n}.parquet'" for n in "ui")
    semantic = f"ids={{kind='semantic', path='{vocabularies}/s.parquet'"
    return {
        "direct": (
            table("user", "ids={kind='direct', out_of_range='fail'}"),
            table("item", "unknown_rows=3, sharding='row_wise'"),
            table("tags", "rows=5, unknown_rows=4, sharding='column_wise'"),
        ),
        "hash": (
            table("user", "ids='hash', rows=13, sharding='row_wise'"),
            table("item", "ids={kind='hash', seed=0}, rows=9"),
            table("tags", "ids='hash', rows=5"),
        ),
        "two hashes": (
            table("user", f"{two}, rows=13, sharding='row_wise'"),
            table("item", f"{two}, rows=9"),
            table("tags", f"{two}, rows=5, sharding='data_parallel'"),
        ),
        "two hashes without bags": (
            "features.sparse=['user', 'item']",
            table("item", f"{two}, rows=9"),
        ),
        "vocabulary": (
            table("user", f"{users}, min_count=8}}, unknown_rows=3, sharding='row_wise'"),
            table("item", f"{items}}}"),
        ),
        "quotient and remainder": (
            table("user", "ids='quotient_remainder', sharding='row_wise'"),
            table("item", "ids={kind='quotient_remainder', divisor=4}, unknown_rows=3"),
            table("tags", "ids='quotient_remainder', rows=10, sharding='column_wise'"),
        ),
        "semantic prefixes beside raw ids": (
            f"features.sparse={RAW_AND_SEMANTIC}",
            table("sid", f"{semantic}, numbering='all', max_rows=7}}, sharding='row_wise'"),
            table("user", "unknown_rows=3"),
        ),
        "semantic levels and pairs": (
            f"features.sparse={RAW_AND_SEMANTIC}",
            table("sid", f"{semantic}, form='level', levels=2}}, unknown_rows=3"),
            table("item", f"{semantic}, form='ngram'}}, sharding='column_wise'"),
        ),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and vocabularies of its training rows: ids seen 20 times or more of items."""
    place = tmp_path_factory.mktemp("ids")
    source = open_data(write_rows(place / "rows"))
    (place / "lists").mkdir()
    users = VocabularyFile(("user",), place / "lists/u.parquet")
    items = VocabularyFile(("item", "seen"), place / "lists/i.parquet")
    write_vocabularies(source, [users], TRAINING)
    write_vocabularies(source, [items], TRAINING, min_count=20)
    codes = np.random.default_rng(3).integers(0, 3, (len(CODED), 3)).astype(np.int32)
    write_codes(place / "lists/s.parquet", CODED, codes, (3, 3, 3), {"codebooks": "drawn"})
    return place


def starts(place: Path, ranks: int) -> dict[str, Start]:
    return {
        kind: Start(
            make_recipe(place / "rows", f"train.steps={STEPS}", *changes),
            place / f"{kind} {ranks}".replace(" ", "-"),
        )
        for kind, changes in kinds(place / "lists").items()
    }


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[int, dict[str, Trained]]:
    """Every kind on one rank and on two, after which the recipes' vocabularies are taken away."""
    one, two = starts(place, 1), starts(place, 2)
    done = {
        1: dict(zip(one, alone(list(one.values())), strict=True)),
        2: dict(zip(two, train_on(2, list(two.values())), strict=True)),
    }
    (place / "lists").rename(place / "kept")
    return done


@pytest.mark.parametrize("kind", kinds(Path()))
def test_losses_do_not_depend_on_the_number_of_ranks(
    trained: dict[int, dict[str, Trained]], kind: str
) -> None:
    one, two = trained[1][kind], trained[2][kind]
    assert two.parameters["world_size"] == 2
    assert len(one.losses) == STEPS
    assert len(set(one.losses)) == STEPS
    np.testing.assert_allclose(two.losses, one.losses, rtol=1e-5)
    np.testing.assert_allclose(
        [two.metrics[f"{task}/logloss"] for task in ("click", "buy")],
        [one.metrics[f"{task}/logloss"] for task in ("click", "buy")],
        rtol=1e-5,
    )


def test_kinds_are_different_models(trained: dict[int, dict[str, Trained]]) -> None:
    assert len({run.losses[-1] for run in trained[1].values()}) == len(trained[1])


@pytest.mark.parametrize("kind", kinds(Path()))
def test_the_exported_model_says_what_the_trainer_says_of_raw_ids(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path, kind: str
) -> None:
    start = starts(place, 2)[kind]
    held_out = read_held_out(start.directory / "held_out.parquet", start.recipe)
    model = InferenceModel.load(
        bundle_of_checkpoint(trained[2][kind].checkpoint, tmp_path / "model")
    )
    logits = model.predict_logits(held_out.columns)
    assert logits.shape[0] > 30
    torch.testing.assert_close(logits, held_out.logits, rtol=0, atol=2e-6)
    assert model.unknown_ids["user"] > 0, "some users are missing"


@pytest.mark.parametrize("ranks", [1, 2])
def test_unknown_ids_are_counted_over_all_ranks(
    trained: dict[int, dict[str, Trained]], place: Path, ranks: int
) -> None:
    run, recipe = trained[ranks]["direct"], starts(place, ranks)["direct"].recipe
    keys = rows_seen(run.checkpoint, recipe)[0]
    rows = pq.read_table(place / "rows/0-train.parquet").take(keys)  # keys begin with these rows
    bags = rows.column("seen").combine_chunks().flatten().to_pylist()
    items = rows.column("item").to_pylist()
    unknown = sum(not 0 <= item < 25 for item in items)
    shares = {name: run.log[f"ids/{name}/unknown"][STEPS] for name in ("user", "item", "tags")}
    assert shares["user"] == rows.column("user").null_count / len(keys) > 0
    assert shares["item"] == unknown / (len(items) + len(bags)) > 0
    assert run.log["data/unknown_ids/item"] == {STEPS: unknown}
    # Items are -3 or too large where they are unknown, so a hash finds a row for all of them.
    hashed = trained[ranks]["hash"].log
    assert hashed["ids/item/unknown"][STEPS] == 0
    assert hashed["ids/user/unknown"][STEPS] == shares["user"]


def test_vocabularies_are_copied_into_run_checkpoint_and_model(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path
) -> None:
    tables = enumerate(("user", "item"))
    run, checkpoint = starts(place, 2)["vocabulary"].directory, trained[2]["vocabulary"].checkpoint
    model = bundle_of_checkpoint(checkpoint, tmp_path / "model")
    for number, name in enumerate("ui"):
        content = (place / f"kept/{name}.parquet").read_bytes()
        for directory in (run, checkpoint, model):
            assert (directory / f"vocabulary-{number:04d}.parquet").read_bytes() == content
    manifest = verify(checkpoint)
    assert sorted(manifest.copies) == ["vocabulary-0000.parquet", "vocabulary-0001.parquet"]
    digests = {table: manifest.copies[f"vocabulary-000{n}.parquet"].sha256 for n, table in tables}
    assert manifest.extra["files"] == digests
    assert read_manifest(trained[2]["hash"].checkpoint).copies == {}
    damaged = checkpoint / "vocabulary-0001.parquet"
    whole = damaged.read_bytes()
    try:
        damaged.write_bytes(whole[:-1] + b"x")
        with pytest.raises(UserError, match=r"vocabulary-0001.parquet: its SHA-256 is not"):
            bundle_of_checkpoint(checkpoint, tmp_path / "other")
    finally:
        damaged.write_bytes(whole)


def test_items_without_codes_are_unknown_and_counted(
    trained: dict[int, dict[str, Trained]], place: Path
) -> None:
    kind = "semantic prefixes beside raw ids"
    run = trained[2][kind]
    keys = rows_seen(run.checkpoint, starts(place, 2)["direct"].recipe)[0]  # rows know no table
    rows = pq.read_table(place / "rows/0-train.parquet").take(keys)
    items = rows.column("item").to_numpy()
    bags = rows.column("seen").combine_chunks().flatten().to_numpy()
    unknown = int((~np.isin(items, CODED)).sum()), int((~np.isin(bags, CODED)).sum())
    assert min(unknown) > 0
    counted = (run.log[f"data/unknown_ids/{name}_sid"][STEPS] for name in ("item", "seen"))
    assert tuple(counted) == unknown
    share = run.log["ids/sid/unknown"][STEPS]
    assert share == pytest.approx(sum(unknown) / (len(items) + len(bags)))


def test_files_of_codes_are_copied_into_run_checkpoint_and_model(
    trained: dict[int, dict[str, Trained]], place: Path, tmp_path: Path
) -> None:
    kind = "semantic levels and pairs"
    run, checkpoint = starts(place, 2)[kind].directory, trained[2][kind].checkpoint
    model = bundle_of_checkpoint(checkpoint, tmp_path / "model")
    content = (place / "kept/s.parquet").read_bytes()
    for number in range(2):
        for directory in (run, checkpoint, model):
            assert (directory / f"codes-{number:04d}.parquet").read_bytes() == content
    assert sorted(verify(checkpoint).copies) == ["codes-0000.parquet", "codes-0001.parquet"]


def test_a_run_goes_on_with_the_same_codes_only(
    trained: dict[int, dict[str, Trained]], place: Path
) -> None:
    kind = "semantic prefixes beside raw ids"
    more = make_recipe(place / "rows", f"train.steps={STEPS + 2}", *kinds(place / "lists")[kind])
    directory = Path(trained[1][kind].checkpoint).parent.parent
    shutil.copytree(place / "kept", place / "lists")
    known = pq.read_table(place / "kept/s.parquet")
    codes = np.stack([known.column(f"code_{level}").to_numpy() for level in range(3)], axis=1)
    swapped = codes[[1, 0, *range(2, len(codes))]]
    assert (swapped[0] != codes[0]).any()
    write_codes(place / "lists/s.parquet", CODED, swapped, (3, 3, 3), {"codebooks": "drawn"})
    with pytest.raises(
        UserError, match=r"tables.sid.ids.path: .*s.parquet is not the file of codes"
    ):
        alone([Start(more, directory, "changed")])
    shutil.copy(place / "kept/s.parquet", place / "lists/s.parquet")
    assert alone([Start(more, directory, "same")])[0].steps == STEPS + 2
    shutil.rmtree(place / "lists")


def test_a_run_goes_on_with_the_same_vocabulary_only(
    trained: dict[int, dict[str, Trained]], place: Path
) -> None:
    changes = kinds(place / "lists")["vocabulary"]
    more = make_recipe(place / "rows", f"train.steps={STEPS + 2}", *changes)
    directory = Path(trained[1]["vocabulary"].checkpoint).parent.parent
    shutil.copytree(place / "kept", place / "lists")
    known = pq.read_table(place / "kept/i.parquet")
    others = pa.array([1, 0, *range(2, known.num_rows)])  # as many rows, but two for other ids
    changed = pa.table([known.column("id").take(others), known.column("count")], known.schema)
    pq.write_table(changed, place / "lists/i.parquet")
    with pytest.raises(UserError, match=r"tables.item.ids.path: .*i.parquet is not the vocabulary"):
        alone([Start(more, directory, "changed")])
    shutil.copy(place / "kept/i.parquet", place / "lists/i.parquet")
    assert alone([Start(more, directory, "same")])[0].steps == STEPS + 2
    shutil.rmtree(place / "lists")


def test_tables_have_the_rows_that_their_kind_needs(
    trained: dict[int, dict[str, Trained]], place: Path
) -> None:
    schema = open_data(place / "rows").schema
    rows = {}
    for kind, changes in kinds(place / "kept").items():
        tables = id_tables(make_recipe(place / "rows", *changes), schema)
        rows[kind] = [(each.rows.known, each.rows.unknown) for each in tables.values()]
    counts = pq.read_table(place / "kept/u.parquet").column("count").to_numpy()
    items = pq.read_metadata(place / "kept/i.parquet").num_rows
    codes = pq.read_table(place / "kept/s.parquet").select(["code_0", "code_1", "code_2"])
    first, second, third = (column.to_pylist() for column in codes.columns)
    pairs = sum(len(set(zip(*each, strict=True))) for each in ((first, second), (second, third)))
    assert rows == {
        "direct": [(40, 1), (25, 3), (5, 4)],
        "hash": [(13, 1), (9, 1), (5, 1)],
        "two hashes": [(13, 1), (9, 1), (5, 1)],
        "two hashes without bags": [(40, 1), (9, 1)],
        "vocabulary": [(int((counts >= 8).sum()), 3), (items, 1), (12, 1)],
        "quotient and remainder": [(6 + 7, 1), (7 + 4, 3), (3 + 4, 1)],
        "semantic prefixes beside raw ids": [(40, 3), (25, 1), (3 + 7 + 7, 1), (12, 1)],
        "semantic levels and pairs": [(40, 1), (pairs, 1), (3 + 3, 3), (12, 1)],
    }
    assert 0 < rows["vocabulary"][0][0] < len(counts)
