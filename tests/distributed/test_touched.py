"""Rows that training touched since a step: exactly those of the batches, under any placement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.checkpoint import read_manifest
from prismrec.checkpoint.exchange import export_tables
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import Recipe, UserError
from prismrec.data.encode.tables import encoders_of
from prismrec.data.reader import Reader
from prismrec.data.source import open_data
from tests.helpers.runs import Start, alone, make_recipe, train_on, write_rows

LAST, SAVED = 42, (40, 42)
"""An epoch has 41 steps of 8 rows, the last of which is padded: it lies between the saves."""
TABLES = {"user": ("user",), "item": ("item", "seen"), "tags": ("tags",)}
SETS = {"wide": ("user", "item", "seen", "tags"), "narrow": ("user", "item", "tags")}
"""Sets and the features that they cover."""
NARROW = (
    "embedding.sets=[{name='wide',dim=8,init_std=0.1},"
    "{name='narrow',dim=4,init_std=0.1,features=['user','item','tags']}]"
)
TRACKED = (
    "embedding.track_touched=true",
    "data.global_batch_size=8",
    f"train.steps={LAST}",
    f"checkpoint.every_steps={SAVED[0]}",
    "checkpoint.keep_last=9",
    "tasks=[{name='click',label='click'}]",
)
MANAGED = (
    "embedding.tables.user={rows=16, ids={kind='managed', policy='lru', interval=3, ttl_steps=2}}"
)
PLACEMENTS = {
    "packed": ("row_wise", "column_wise", "data_parallel"),
    "separate": ("column_wise", "data_parallel", "row_wise"),
    "packed_2": ("data_parallel", "row_wise", "table_wise"),
    "packed_cut": ("column_wise", "column_wise", "row_wise"),
    "spread": ("auto", "auto", "auto"),
}
"""The kinds of the tables user, item and tags."""
WIDER = "embedding.sets=[{name='wide',dim=12,init_std=0.1},{name='narrow',dim=4,init_std=0.1}]"
"""Rows of 16 numbers, which two ranks cut in the middle of a set."""


def _recipe(data: Path, placement: str, *overrides: str) -> Recipe:
    kinds = zip(TABLES, PLACEMENTS[placement], strict=True)
    tables = [f"embedding.tables.{name}.sharding='{kind}'" for name, kind in kinds]
    layout = f"embedding.layout='{placement.partition('_')[0]}'"
    sets = WIDER if placement == "packed_cut" else "embedding.init_std=0.01"
    return make_recipe(data, layout, sets, *tables, *TRACKED, *overrides)


def _rows_of_steps(recipe: Recipe, first: int, last: int) -> dict[str, set[int]]:
    """Rows by feature in the batches of steps first..last, counted from 1, as a reader gives them."""
    source = open_data(recipe.data.path)
    reader = Reader(source, recipe, "train", encoders_of(recipe, source.schema), training=True)
    rows: dict[str, set[int]] = {feature.name: set() for feature in recipe.features.sparse}
    step = 0
    for epoch in range(recipe.train.epochs):
        for batch, _ in reader.epoch(epoch):
            step += 1
            if first <= step <= last:
                for key in batch.sparse.keys():
                    rows[key] |= set(batch.sparse[key].values().tolist())
    return rows


def _written(directory: Path) -> dict[str, pa.Table]:
    keys = [f"{table}/{set_name}" for table in TABLES for set_name in SETS]
    return {key: pq.read_table(directory / key) for key in keys}


def _export(checkpoint: Path, out: Path, since: int | None = None) -> dict[str, pa.Table]:
    with CheckpointTables(checkpoint) as tables:
        export_tables(tables, tables.chosen(None, None), out, lambda done, total: None, since)
    return _written(out)


def _saved(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _vectors(table: pa.Table) -> np.ndarray:
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)


def _check(run: Path, out: Path, recipe: Recipe, sets: dict[str, tuple[str, ...]]) -> None:
    """The delta between two saves has the rows of the steps between, and makes the older the newer."""
    older, newer = (_saved(run, step) for step in SAVED)
    before, after = _export(older, out / "older"), _export(newer, out / "newer")
    rows = _rows_of_steps(recipe, SAVED[0] + 1, SAVED[1])
    for key, delta in _export(newer, out / "delta", SAVED[0]).items():
        table, set_name = key.split("/")
        features = [each for each in TABLES[table] if each in sets[set_name]]
        expected = set().union(*(rows[each] for each in features))
        assert set(delta["row"].to_pylist()) == expected, key
        assert 0 < len(expected) < before[key].num_rows or table == "item", key
        applied = _vectors(before[key]).copy()
        applied[delta["row"].to_numpy()] = _vectors(delta)
        assert np.array_equal(applied.view(np.int32), _vectors(after[key]).view(np.int32)), key
        ids = after[key]["id"].to_pylist()
        assert ids == [*range(after[key].num_rows - 1), None]
        assert delta["id"].to_pylist() == [ids[row] for row in delta["row"].to_pylist()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs are: each placement on one rank and on two, and one that changes both."""
    directory = tmp_path_factory.mktemp("touched")
    data = write_rows(directory / "data")
    recipes = {name: _recipe(data, name) for name in PLACEMENTS}
    first = Start(_recipe(data, "separate", "train.steps=31"), directory / "changing")
    whole = {name: recipe for name, recipe in recipes.items() if name != "spread"}
    alone([first, *(Start(recipe, directory / f"{name}-1") for name, recipe in whole.items())])
    starts = [Start(recipe, directory / f"{name}-2") for name, recipe in recipes.items()]
    covering = _recipe(data, "separate", NARROW)  # `seen` has no vector in the narrow set
    starts += [
        Start(covering, directory / "covering"),
        Start(_recipe(data, "packed"), directory / "changing", "second"),
        Start(make_recipe(data, MANAGED, *TRACKED), directory / "managed"),
    ]
    train_on(2, starts)
    return directory


def test_columns_are_really_cut(place: Path) -> None:
    """Inside a set on two ranks, and in `spread` between the sets; each part has its own record."""
    for placement, key, columns in (
        ("packed_cut", "user/wide", [(0, 8), (8, 4)]),
        ("packed_cut", "user/narrow", [(0, 4)]),
        ("separate", "user/wide", [(0, 4), (4, 4)]),
        ("spread", "user/wide", [(0, 8)]),
    ):
        manifest = read_manifest(_saved(place / f"{placement}-2", LAST))
        for name in ("weight", "touched"):
            blocks = manifest.tables[key].tensors[name].blocks
            assert sorted({(block.col, block.cols) for block in blocks}) == columns, (key, name)


@pytest.mark.parametrize(
    ("placement", "world"), [(p, w) for p in PLACEMENTS for w in (1, 2) if (p, w) != ("spread", 1)]
)
def test_a_delta_has_exactly_the_rows_of_the_steps(
    place: Path, tmp_path: Path, placement: str, world: int
) -> None:
    recipe = _recipe(place / "data", placement)
    _check(place / f"{placement}-{world}", tmp_path, recipe, dict.fromkeys(SETS, SETS["wide"]))


def test_a_set_has_the_rows_of_its_own_features(place: Path, tmp_path: Path) -> None:
    recipe = _recipe(place / "data", "separate", NARROW)
    _check(place / "covering", tmp_path, recipe, SETS)


def test_the_record_goes_on_with_another_placement_and_world(place: Path, tmp_path: Path) -> None:
    recipe = _recipe(place / "data", "packed")
    rows = _rows_of_steps(recipe, 39, LAST)
    delta = _export(_saved(place / "changing", LAST), tmp_path / "delta", 38)
    for table, features in TABLES.items():
        expected = set().union(*(rows[each] for each in features))
        for set_name in SETS:
            assert set(delta[f"{table}/{set_name}"]["row"].to_pylist()) == expected


def test_without_the_record_nothing_is_said(place: Path, tmp_path: Path) -> None:
    data, run = place / "data", tmp_path / "run"
    untracked = _recipe(data, "packed", "embedding.track_touched=false", "train.steps=2")
    (first,) = alone([Start(untracked, run)])
    with CheckpointTables(first.checkpoint) as tables:
        assert not any(each.is_tracked for each in tables.facts())
        with pytest.raises(UserError, match=r"user/wide were touched.*track_touched = true"):
            export_tables(tables, [("user", "wide")], tmp_path / "no", lambda *_: None, 1)
        with pytest.raises(UserError, match="--since 3: the checkpoint .* is of step 2"):
            export_tables(tables, [("user", "wide")], tmp_path / "no", lambda *_: None, 3)
    assert not (tmp_path / "no").exists()
    tracked = _recipe(data, "packed", "train.steps=4")
    with pytest.raises(UserError, match=r"when rows of user/wide were touched .* is unknown"):
        alone([Start(tracked, run, "second")])


def test_a_delta_of_managed_ids_is_applied_by_row(place: Path, tmp_path: Path) -> None:
    """Rows that changed their owner are in it; one that has none now has no id, and zeros."""
    older, newer = (_saved(place / "managed", step) for step in SAVED)
    before, after = _export(older, tmp_path / "older"), _export(newer, tmp_path / "newer")
    delta = _export(newer, tmp_path / "delta", SAVED[0])
    num_lost = num_changed = 0
    for key in before:
        old = {row["row"]: row for row in before[key].to_pylist()}
        changes = {row["row"]: row for row in delta[key].to_pylist()}
        num_changed += sum(row in old and old[row]["id"] != changes[row]["id"] for row in changes)
        applied = old | changes
        expected = {row["row"]: row for row in after[key].to_pylist()}
        assert {row: applied[row] for row in expected} == expected, key
        lost = [row for number, row in applied.items() if number not in expected]
        assert all(row["id"] is None and not any(row["vector"]) for row in lost)
        num_lost += len(lost)
    assert num_lost > 0
    assert num_changed > 0
