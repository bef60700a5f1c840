"""Training past a row group that cannot be decoded: as if its rows had no values and no labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.checkpoint.manifest import read_manifest
from prismrec.config import UserError
from prismrec.data.source import open_data
from prismrec.train.feed import Splits
from prismrec.train.process_group import process_group
from tests.helpers.damage import damage
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import ROWS, Start, Trained, make_recipe, rows_seen, train_on, write_rows

FILE, GROUP, GROUP_ROWS = "0-train.parquet", 2, 50
_READ = ("user", "item", "tags", "tag_weights", "seen", "x", "y", "click", "buy", "at")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Two ranks on damaged rows, and on rows that are null where those are damaged."""
    place = tmp_path_factory.mktemp("skipped")
    broken, null = write_rows(place / "broken"), write_rows(place / "null")
    damage(broken / FILE, GROUP, "user")
    for split in ("1-valid", "2-test"):
        damage(broken / f"{split}.parquet", 1, "user")
        _empty(null / f"{split}.parquet", 1)
    _empty(null / FILE, GROUP)
    starts = [
        Start(
            make_recipe(broken, "data.on_bad_file='skip'", "train.epochs=1", "train.steps=50"),
            place / "a",
        ),
        Start(make_recipe(null, "train.epochs=1", "train.steps=50"), place / "b"),
    ]
    return dict(zip(("broken", "null"), train_on(2, starts), strict=True))


def _empty(path: Path, group: int) -> None:
    """Make every value that the recipe reads null in one row group."""
    table = pq.read_table(path)
    here = np.arange(table.num_rows) // GROUP_ROWS == group
    for name in _READ:
        column = table.column(name).combine_chunks()
        kept = pa.array(np.where(here, -1, np.arange(table.num_rows)), mask=here)
        at = table.column_names.index(name)
        table = table.set_column(at, name, column.take(kept))
    pq.write_table(table, path, row_group_size=GROUP_ROWS)


def test_weightless_rows_train_as_rows_without_values(runs: dict[str, Trained]) -> None:
    assert runs["broken"].steps == runs["null"].steps == -(-ROWS["train"] // 16)
    assert runs["broken"].losses == runs["null"].losses
    alike = pytest.approx(runs["null"].metrics, abs=0, nan_ok=True)
    assert runs["broken"].metrics == alike, "in the metrics they count for nothing"


def test_ledger_metrics_and_run_name_them(runs: dict[str, Trained]) -> None:
    run = runs["broken"]
    ledger = read_manifest(run.checkpoint).extra["ledger"]
    assert ledger["skipped"] == [{"file": FILE, "row_group": GROUP, "rows": GROUP_ROWS}]
    recipe = make_recipe(run.checkpoint.parents[2] / "broken", "data.on_bad_file='skip'")
    assert sorted(rows_seen(run.checkpoint, recipe)[0]) == list(range(ROWS["train"]))
    assert set(run.log["data/skipped_rows/train"].values()) == {50.0}
    assert run.log["data/skipped_row_groups/train"][run.steps] == 1
    assert run.log["data/skipped_rows/test"] == {run.steps: ROWS["test"] - GROUP_ROWS}
    said = json.loads((run.checkpoint.parents[1] / "skipped.json").read_text())
    assert [(e["split"], e["file"], e["row_group"]) for e in said] == [
        ("test", "2-test.parquet", 1),
        ("train", FILE, GROUP),
        ("valid", "1-valid.parquet", 1),
    ]
    held_out = pq.read_table(run.checkpoint.parents[1] / "held_out.parquet")
    assert 0 < held_out.num_rows <= GROUP_ROWS


def test_ranks_that_see_other_rows_are_refused(tmp_path: Path) -> None:
    for name, rows in (("rows-0", ROWS), ("rows-1", ROWS | {"train": 320})):
        write_rows(tmp_path / name, rows)
    said = run_ranks(_agree, 2, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith("data.splits.train: the ranks do not see the same rows in ")


def _agree(place: Path) -> str:
    """What a rank says that reads a data set of its own."""
    with process_group("cpu") as ranks:
        recipe = make_recipe(place / f"rows-{ranks.rank}")
        with pytest.raises(UserError) as caught:
            Splits(recipe, open_data(recipe.data.path), ranks).agree()
    return caught.value.message.replace(str(recipe.data.path), "")
