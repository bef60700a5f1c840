"""`analyze` from the command line: the page, its numbers, and the runs that keep it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

import prismrec
from prismrec.config.train import TrackingSection
from prismrec.jobs.analyze import CHAPTERS
from prismrec.tracking.registry import Registry
from prismrec.tracking.run import MlflowTracker
from tests.unit.cli.test_models import TAGS, run
from tests.unit.serving.world import SCHEMA, make_world, random_raw

ROWS = 600
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def world(section: TrackingSection, tmp_path: Path) -> tuple[str, Path, str]:
    """A registry with `ctr` 1 and 2 of one run each, rows to look at, and the run of version 2."""
    run_id = ""
    for version, scale in enumerate((0.05, 0.5), 1):
        tracker = MlflowTracker.start(section, f"run {version}")
        tracker.close()
        run_id = tracker.run_id
        bundle = make_world(scale).bundle(tmp_path / str(version))
        Registry(section.uri).register(run_id, bundle, "ctr", {"click/auc": 0.7}, TAGS)
    Registry(section.uri).promote("models:/ctr/2", "click/auc", force=True)
    raw = random_raw(ROWS, seed=5)
    labels = {
        "clicked": [int(user % 2 == 0) for user in raw["user_id"]],
        "bought": [int(item == 3) for item in raw["item"]],
    }
    types = {"hist_w": pa.list_(pa.float32())}
    columns = {**raw, **labels, "note": [0] * ROWS}
    table = pa.table({name: pa.array(each, types.get(name)) for name, each in columns.items()})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=150)
    SCHEMA.write(tmp_path / "data")
    return section.uri, tmp_path / "data", run_id


def _document(captured: Captured) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(captured.readouterr().out)
    return document


def test_two_models_in_one_report_that_their_runs_keep(
    world: tuple[str, Path, str], tmp_path: Path, capsys: Captured
) -> None:
    uri, data, run_id = world
    models = ("models:/ctr/1", "models:/ctr/2")
    options = ("--data", data, "--split", "all", "--tracking-uri", uri, "--json")
    chosen = ("--chapter", "collapse", "--chapter", "discriminability", "--rows", 500)
    assert run("analyze", *models, *options, *chosen, "--out", tmp_path / "report") == 0
    document = _document(capsys)
    assert document["models"] == list(models)
    assert set(document["rows"].values()) == {500}
    assert list(document["chapters"]) == ["collapse", "discriminability"]
    assert len(document["runs"]) == 2

    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for chapter in document["chapters"].values():
        assert chapter["summary"]
    assert "models:/ctr/2" in page
    assert "Plotly" in page
    kept = MlflowClient(uri).download_artifacts(run_id, "analysis/report.html", str(tmp_path))
    assert Path(kept).read_text(encoding="utf-8") == page

    numbers = tmp_path / "report" / "numbers"
    with (numbers / "collapse-1-dimensions-that-tables-use.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # 5 users, 7 goods and 4 tags in two sets of two models
    assert [(each["name"], each["cardinality"]) for each in rows[:6:2]] == [
        ("user_id", "5"),
        ("goods", "7"),
        ("tags", "4"),
    ]
    assert len(rows) == 12


def test_without_json_the_findings_are_printed(
    world: tuple[str, Path, str], tmp_path: Path, capsys: Captured
) -> None:
    uri, data, _ = world
    options = ("--data", data, "--split", "all", "--tracking-uri", uri, "--chapter", "collapse")
    stale = tmp_path / "report" / "numbers" / "collapse-of-another-model.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    stale.with_name("mine.csv").write_text("not of a report")
    assert run("analyze", "models:/ctr/2", *options, "--out", tmp_path / "report") == 0
    assert not stale.exists()
    assert stale.with_name("mine.csv").exists()
    captured = capsys.readouterr()
    assert captured.out == "no table has 64 rows, too few to speak of collapse.\n"
    assert "report.html in" in captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--chapter", "collaps"), "--chapter: there is no 'collaps'; there are collapse, "),
        (("models:/ctr/2",), "'models:/ctr/2' is given twice"),
        (("models:/ctr@champion",), "'models:/ctr/2' is given twice"),
        (
            ("--chapter", "entanglement", "--user", "item", "--item", "goods"),
            "--item: models:/ctr/2 has no field 'goods'; it has",
        ),
        (("--split", "test"), "has no split 'test'; use --split all"),
    ],
)
def test_what_cannot_be_done_leaves_nothing_behind(
    world: tuple[str, Path, str],
    tmp_path: Path,
    capsys: Captured,
    changes: tuple[str, ...],
    message: str,
) -> None:
    uri, data, _ = world
    options = ("--data", data, "--tracking-uri", uri, "--out", tmp_path / "report")
    assert run("analyze", "models:/ctr/2", *options, "--split", "all", *changes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_the_same_from_python(world: tuple[str, Path, str], tmp_path: Path) -> None:
    uri, data, _ = world
    found = prismrec.analyze(
        "models:/ctr/2", data, tmp_path / "report", split="all", tracking_uri=uri
    )
    assert set(found["chapters"]) == set(CHAPTERS)
    assert Path(found["report"]).exists()
    assert found["rows"] == {"models:/ctr/2": ROWS}
    assert any("one task" in each for each in found["chapters"]["entanglement"]["missing"])


def test_what_one_chapter_cannot_do_leaves_the_others(
    world: tuple[str, Path, str], tmp_path: Path, capsys: Captured
) -> None:
    uri, data, _ = world
    options = ("--data", data, "--split", "all", "--tracking-uri", uri, "--json")
    chosen = ("--chapter", "collapse", "--chapter", "entanglement", "--user", "nobody")
    assert run("analyze", "models:/ctr/2", *options, *chosen, "--out", tmp_path / "report") == 0
    chapters = _document(capsys)["chapters"]
    assert chapters["collapse"]["summary"]
    (told,) = chapters["entanglement"]["missing"]
    assert told.startswith("--user: models:/ctr/2 has no field 'nobody'")
