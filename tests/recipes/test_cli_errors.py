"""A user's mistake: one sentence with what, where and what to do; exit code 2; nothing half-written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.command import run

PROGRAM = Path(sys.executable).with_name("prismrec")
ROWS, GROUP_ROWS = 320, 40
SCHEMA = {
    "name": "clicks",
    "columns": {
        "day": {"kind": "other"},
        "user": {"kind": "id", "num_ids": 20},
        "item": {"kind": "id", "num_ids": 30},
        "price": {"kind": "number"},
        "click": {"kind": "label"},
    },
}
RECIPE = """
name = "small"
out = "runs"
tasks = [{ name = "click", label = "click" }]
[data]
path = "data"
global_batch_size = 40
lanes = 4
[data.splits]
train = ["day == 0"]
[features]
sparse = ["user", "item"]
dense = ["price"]
[embedding]
dim = 4
[model]
name = "dnn"
hidden = [4]
[train]
precision = "fp32"
[evaluate]
bootstrap = 0
[tracking]
uri = "sqlite:///mlflow.db"
"""
Failed = Callable[..., str]


def columns(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "day": np.repeat([0, 1], ROWS // 2),
        "user": rng.integers(0, 20, ROWS),
        "item": rng.integers(0, 30, ROWS),
        "price": rng.normal(size=ROWS).astype(np.float32),
        "click": rng.integers(0, 2, ROWS).astype(np.float32),
    }
    return {name: value for name, value in (made | changed).items() if value is not None}


def write(directory: Path, **changed: Any) -> None:
    directory.mkdir(exist_ok=True)
    table = pa.table(columns(**changed))
    pq.write_table(table, directory / "part-0.parquet", row_group_size=GROUP_ROWS)
    (directory / "schema.json").write_text(json.dumps(SCHEMA))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe and its data."""
    for name in ("PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "ignore" if name == "PYTHONWARNINGS" else "ERROR")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)
    write(tmp_path / "data")
    return tmp_path


@pytest.fixture
def failed(here: Path, capfd: pytest.CaptureFixture[str]) -> Failed:
    """Run a command that fails with exit code 2 and return its one message."""

    def run_failing(*arguments: str) -> str:
        assert run(*arguments) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.endswith("\n")
        leftovers = [
            *here.rglob("*.tmp*"),
            *here.glob("runs/*/checkpoints/*"),
            *here.glob("runs/*/model"),
        ]
        assert not leftovers
        return captured.err.removeprefix("error: ").rstrip("\n")

    return run_failing


def train_fails(failed: Failed, *overrides: str) -> str:
    message = failed("train", "small.toml", *overrides, "--no-ray")
    assert "\n" not in message
    return message


def no_run_began(here: Path) -> bool:
    return not (here / "runs").exists() and not (here / "mlflow.db").exists()


def test_five_mistakes_are_five_lines_with_nearest_names(failed: Failed, here: Path) -> None:
    wrong = ("train.stepz=5", "model.name=dcnv", "train.device=gpu", "data.lanes=0", "out=5")
    lines = failed("train", "small.toml", *wrong, "--no-ray").splitlines()
    assert lines == [
        "small.toml:",
        "  - data.lanes: must be >= 1, got 0",
        "  - model: unknown model 'dcnv'; did you mean 'dcnv2'?",
        "  - out: must be a string, got 5 (int)",
        "  - train.device: must be one of 'auto', 'cpu' or 'cuda', got 'gpu'",
        "  - train.stepz: unknown key; did you mean 'steps'?",
    ]
    assert no_run_began(here)


def test_missing_data_directory(failed: Failed, here: Path) -> None:
    assert train_fails(failed, "data.path=nowhere") == (
        f"{here}/nowhere: no such directory; data.path names a directory of Parquet files"
    )
    assert no_run_began(here)


def test_directory_without_parquet(failed: Failed, here: Path) -> None:
    (here / "data/part-0.parquet").rename(here / "data/part-0.csv")
    assert train_fails(failed) == (
        f"{here}/data: no *.parquet file in it or below; `prismrec data prepare` writes them"
    )
    assert no_run_began(here)


def test_column_that_the_data_lacks(failed: Failed, here: Path) -> None:
    assert train_fails(failed, 'features.sparse=["user", "items"]') == (
        "features.sparse[1]: the data set 'clicks' has no column 'items'; did you mean 'item'?"
    )
    assert no_run_began(here)


def test_column_that_a_file_lacks(failed: Failed, here: Path) -> None:
    write(here / "data", item=None)
    assert train_fails(failed) == (
        f"{here}/data/part-0.parquet: column 'item' is missing; known: 'click', 'day', 'price', "
        "'user'"
    )
    assert no_run_began(here)


def test_column_of_another_type(failed: Failed, here: Path) -> None:
    write(here / "data", item=[f"item {n}" for n in range(ROWS)])
    message = train_fails(failed)
    assert message.startswith(
        f"{here}/data/part-0.parquet: column 'item' has type string, which is not of kind 'id'; "
        "write it as "
    )
    assert no_run_began(here)


def test_label_without_a_value(failed: Failed, here: Path) -> None:
    write(here / "data", click=pa.nulls(ROWS, pa.float32()))
    assert train_fails(failed) == (
        "column 'click': the label is null in all 160 rows of the split; drop the task or choose "
        "other rows"
    )


def test_fewer_rows_than_lanes(failed: Failed, here: Path) -> None:
    write(here / "data", day=np.array([0] * 3 + [1] * (ROWS - 3)))
    assert train_fails(failed) == (
        "data.lanes: the split 'train' has 3 rows for 4 lanes; loosen data.splits.train or use "
        "fewer lanes"
    )


@pytest.mark.parametrize("width", [6, 2000])
def test_width_that_no_table_can_have(failed: Failed, here: Path, width: int) -> None:
    message = failed("train", "small.toml", f"embedding.dim={width}", "--no-ray")
    assert re.search(rf"embedding.dim: .*{width}", message)
    assert no_run_began(here)


def corrupt(path: Path, group: int) -> None:
    """Overwrite the pages of one row group."""
    column = pq.ParquetFile(path).metadata.row_group(group).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    bytes_ = bytearray(path.read_bytes())
    bytes_[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes_)


def test_corrupt_row_group(failed: Failed, here: Path) -> None:
    corrupt(here / "data/part-0.parquet", 3)
    message = train_fails(failed)
    assert message.startswith("part-0.parquet: row group 3: cannot be decoded (")
    assert message.endswith(
        "); write the file again or remove it, or go on without its rows by "
        "data.on_bad_file = 'skip'"
    )


def test_corrupt_row_group_that_one_rank_of_two_meets(here: Path) -> None:
    corrupt(here / "data/part-0.parquet", 3)  # the rows of the last lane, which rank 1 reads
    done = subprocess.run(
        [PROGRAM, "train", "small.toml", "--no-ray", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: part-0.parquet: row group 3: cannot be decoded (")
    assert not [*here.glob("runs/*/checkpoints/*"), *here.glob("runs/*/model")]


def test_ids_out_of_range_are_counted_and_told(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    users = columns()["user"]
    users[:7] = [20, 21, 1 << 40, -1, -5, 99, 20]
    write(here / "data", user=users)
    assert run("train", "small.toml", "--no-ray") == 0
    captured = capfd.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("warning")]
    assert line.startswith("warning: 7 ids of 'user' ")
    (events,) = here.glob("runs/*/events.jsonl")
    values = [json.loads(line).get("values", {}) for line in events.read_text().splitlines()]
    assert [v["data/unknown_ids/user"] for v in values if "data/unknown_ids/user" in v] == [7.0]


def test_resuming_another_model(
    failed: Failed, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "small.toml", "--no-ray") == 0
    capfd.readouterr()
    (saved,) = here.glob("runs/*/checkpoints/*")
    before = sorted(saved.iterdir())
    assert run("train", "small.toml", "--no-ray", "--resume", "model.hidden=[8]") == 2
    assert capfd.readouterr().err == (
        f"error: --resume: model.hidden differs from that of the run in {saved.parents[1]}; resume with "
        "the same recipe or start a new run\n"
    )
    assert sorted(saved.iterdir()) == before


def test_resuming_from_a_checkpoint_of_another_model(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "small.toml", "--no-ray") == 0
    assert run("train", "small.toml", "--no-ray", "model.hidden=[8]", "name=other") == 0
    capfd.readouterr()
    (ours,), (other,) = here.glob("runs/small-*/checkpoints"), here.glob("runs/other-*/checkpoints")
    ours.rename(here / "away")
    other.rename(ours)
    assert run("train", "small.toml", "--no-ray", "--resume") == 2
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: checkpoint of another model: {ours}/step-00000004")


def test_occupied_directories(
    failed: Failed, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = here / "taken"
    taken.mkdir()
    (taken / "note.txt").write_text("mine")
    for command in (
        ("data", "synth", str(taken), "--rows", "400", "--days", "1"),
        ("data", "prepare", "csv", "--source", str(here), "--out", str(taken)),
    ):
        assert str(taken) in failed(*command)
        assert [path.name for path in taken.iterdir()] == ["note.txt"]
    assert run("train", "small.toml", "--no-ray") == 0
    capfd.readouterr()
    (run_directory,) = map(str, here.glob("runs/*"))
    assert run("predict", run_directory, "--data", "data", "--out", "taken") == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ("error: taken: already there and not empty; choose another directory\n")
    assert [path.name for path in taken.iterdir()] == ["note.txt"]
