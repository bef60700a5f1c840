"""`evaluate` and the trainer say the same of one model, whatever the labels hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.schema import Column, DataSchema
from prismrec.jobs.evaluate import evaluate_model
from tests.helpers.runs import Start, Trained, alone, make_recipe, write_rows

SPACE = "in_space"
TASKS = (
    'tasks=[{ name = "click", label = "click" }, '
    f'{{ name = "buy", label = "buy", valid = "{SPACE}" }}]'
)


def rewrite(directory: Path, seed: int = 3) -> None:
    """Make `click` a float with NaN and null, `buy` one with NaN, and add a sample space."""
    random = np.random.default_rng(seed)
    for path in sorted(directory.glob("*.parquet")):
        table = pq.read_table(path)
        for name in ("click", "buy"):
            values = table.column(name).to_numpy().astype(np.float32)  # null becomes NaN
            values[random.random(len(values)) < 0.1] = np.nan
            absent = random.random(len(values)) < 0.1
            array = pa.array(values, mask=absent, from_pandas=False)
            table = table.set_column(table.column_names.index(name), name, array)
        choices = random.choice([0.0, 1.0, 1.0, 1.0, np.nan], table.num_rows).astype(np.float32)
        absent = random.random(table.num_rows) < 0.1
        space = pa.array(choices, mask=absent, from_pandas=False)
        pq.write_table(table.append_column(SPACE, space), path, row_group_size=20)
    schema = DataSchema.parse((directory / "schema.json").read_text(), "schema.json")
    columns = {**schema.columns, SPACE: Column(kind="number")}
    schema.model_copy(update={"columns": columns}).write(directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_rows(
        tmp_path_factory.mktemp("evaluate") / "rows", {"train": 64, "valid": 20, "test": 150}
    )
    rewrite(directory)
    return directory


@pytest.fixture(scope="module")
def trained(data: Path) -> Trained:
    recipe = make_recipe(data, TASKS, "features.domain=tab", "train.steps=4")
    (result,) = alone([Start(recipe, data.parent / "run")])
    return result


def progress(done: int, total: int) -> None:
    """Nobody watches."""


def test_the_trainer_and_evaluate_agree_on_missing_labels(
    data: Path, trained: Trained, uri: str
) -> None:
    told: list[tuple[int, int]] = []
    document = evaluate_model(
        str(trained.checkpoint),
        str(data),
        "test",
        uri,
        lambda done, total: told.append((done, total)),
    )
    found = document["test"] | document["slices"]
    assert found.keys() == trained.metrics.keys()
    assert {"click/gauc", "buy/ece_mass", "buy/auc/domain=2"} < found.keys()
    for name, value in trained.metrics.items():
        assert found[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name
    assert (document["rows"], told[-1]) == (150, (150, 234))


def test_rows_without_a_label_or_outside_the_sample_space_do_not_count(
    data: Path, trained: Trained, uri: str
) -> None:
    rows = pq.read_table(data / "2-test.parquet").to_pylist()
    labelled = [row for row in rows if row["click"] in (0, 1)]
    bought = [row for row in rows if row["buy"] in (0, 1) and row[SPACE] == 1]
    assert any(row["click"] is None for row in rows)
    assert any(row["click"] != row["click"] for row in rows)
    assert 0 < len(bought) < len([row for row in rows if row["buy"] in (0, 1)])
    document = evaluate_model(str(trained.checkpoint), str(data), "test", uri, progress)
    assert document["test"]["click/rows"] == len(labelled)
    assert document["test"]["buy/rows"] == len(bought)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", 2.0, r"rows: column 'click' holds 2; a label is 0, 1 or null"),
        (SPACE, 0.5, rf"rows: column '{SPACE}' holds 0\.5; a label is 0, 1 or null"),
    ],
)
def test_other_values_are_refused(
    tmp_path: Path, trained: Trained, uri: str, column: str, value: float, message: str
) -> None:
    directory = write_rows(tmp_path / "rows", {"test": 30})
    rewrite(directory)
    path = directory / "2-test.parquet"
    table = pq.read_table(path)
    values = [*table.column(column).to_pylist()[:-1], value]
    wrong = pa.array(values, pa.float32())
    pq.write_table(table.set_column(table.column_names.index(column), column, wrong), path)
    with pytest.raises(UserError, match=message):
        evaluate_model(str(trained.checkpoint), str(directory), "test", uri, progress)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, trained: Trained, uri: str) -> None:
    checkpoint = str(trained.checkpoint)
    directory = write_rows(tmp_path / "rows", {"train": 30})
    with pytest.raises(UserError, match=rf"--data: the data set 'small' has no column '{SPACE}'"):
        evaluate_model(checkpoint, str(directory), "all", uri, progress)
    rewrite(directory)
    with pytest.raises(UserError, match=r"--split test: no row of .*rows meets its conditions"):
        evaluate_model(checkpoint, str(directory), "test", uri, progress)
    with pytest.raises(UserError, match=r"--split: must be one of train, valid, test, all"):
        evaluate_model(checkpoint, str(directory), "tset", uri, progress)
