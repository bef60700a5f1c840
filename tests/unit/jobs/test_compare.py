"""Two models on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.jobs.compare import compare_models
from prismrec.serving.inference import InferenceModel
from prismrec.train.metrics.functions import auc
from tests.unit.serving.world import SCHEMA, make_world, random_raw

ROWS = 200
Compare = Callable[..., dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one without common tasks, and rows in two row groups of three."""
    folder = tmp_path_factory.mktemp("compare")
    for name, scale in (("ours", 0.5), ("theirs", 0.05)):
        make_world(scale).bundle(folder / name)
    make_world(tasks=[{"name": "share", "label": "clicked"}]).bundle(folder / "other")
    make_world(tasks=[{"name": "buy", "label": "bought"}]).bundle(folder / "buyer")
    random = np.random.default_rng(1)
    labels = {
        "clicked": pa.array(random.integers(0, 2, ROWS), mask=random.random(ROWS) < 0.2),
        "bought": random.choice([0.0, 1.0, np.nan], ROWS),
    }
    (folder / "data").mkdir()
    table = pa.table({**random_raw(ROWS, 2), **labels, "note": [0] * ROWS})
    pq.write_table(table, folder / "data" / "a.parquet", row_group_size=70)
    SCHEMA.write(folder / "data")
    return folder


def bundle(folder: Path, name: str) -> str:
    return str(folder / name / "bundle-fp32")


@pytest.fixture(scope="module")
def compare(folder: Path, uri: str) -> Compare:
    def compare_two(ours: str, theirs: str, split: str = "all") -> dict[str, dict[str, float]]:
        models = (bundle(folder, ours), bundle(folder, theirs))
        return compare_models(*models, str(folder / "data"), split, uri, lambda *_: None)

    return compare_two


def auc_by_hand(folder: Path, model: str, column: int, label: str) -> float:
    table = pq.read_table(folder / "data" / "a.parquet")
    inference = InferenceModel.load(Path(bundle(folder, model)))
    logits = inference.predict_logits({name: table[name] for name in inference.columns})
    pairs = [
        (score, value)
        for score, value in zip(logits[:, column].tolist(), table[label].to_pylist(), strict=True)
        if value in (0, 1)
    ]
    assert 0 < len(pairs) < ROWS
    return auc(*zip(*pairs, strict=True))


def test_the_difference_is_that_of_the_two_aucs(folder: Path, compare: Compare) -> None:
    compared = compare("ours", "theirs")
    assert list(compared) == ["click", "buy"]
    for column, (task, label) in enumerate((("click", "clicked"), ("buy", "bought"))):
        ours = auc_by_hand(folder, "ours", column, label)
        theirs = auc_by_hand(folder, "theirs", column, label)
        found = compared[task]
        assert found["auc"] == pytest.approx(ours, abs=1e-12)
        assert found["rival_auc"] == pytest.approx(theirs, abs=1e-12)
        assert found["difference"] == pytest.approx(ours - theirs, abs=1e-12)
        assert found["low"] < found["difference"] < found["high"]
        assert found["high"] - found["low"] < 0.5
    swapped = compare("theirs", "ours")["click"]
    assert swapped["difference"] == -compared["click"]["difference"]


def test_a_model_does_not_differ_from_itself(compare: Compare) -> None:
    for found in compare("ours", "ours").values():
        assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_tasks_are_matched_by_name_not_by_place(folder: Path, compare: Compare) -> None:
    compared = compare("ours", "buyer")
    assert list(compared) == ["buy"]
    assert compared["buy"]["auc"] == pytest.approx(auc_by_hand(folder, "ours", 1, "bought"))
    assert compared["buy"]["rival_auc"] == pytest.approx(auc_by_hand(folder, "buyer", 0, "bought"))


def test_models_without_a_common_task_or_rows_are_refused(folder: Path, compare: Compare) -> None:
    with pytest.raises(UserError, match=r"--against: .* has no task of .* \(click, buy\)"):
        compare("ours", "other")
    make_world(data={"path": "unused", "splits": {"test": ["item > 100"]}}).bundle(folder / "none")
    with pytest.raises(UserError, match=r"--split test: no row of .*data meets its conditions"):
        compare("none", "ours", "test")
