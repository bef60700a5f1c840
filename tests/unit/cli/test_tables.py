"""`prismrec tables`, from the command line to the files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from prismrec.checkpoint import read_table
from tests.helpers import command
from tests.unit.checkpoint.stored import STEP, Stored


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("stored"))


def test_list_names_the_tables(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored.path.parent.parent  # its only checkpoint is taken
    assert command.run("tables", "list", run, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["checkpoint"], document["step"]) == (str(stored.path), STEP)
    user = next(t for t in document["tables"] if (t["table"], t["set"]) == ("user", "wide"))
    assert user["rows"] == 3001
    assert (user["width"], user["type"], user["ids"], user["touched"]) == (
        8,
        "fp32",
        "direct",
        True,
    )
    assert command.run("tables", "list", stored.path) == 0
    assert "3,001" in capsys.readouterr().out


def test_export_and_delta_write_the_chosen_tables(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--table", "user", "--set", "narrow")
    assert command.run("tables", "export", stored.path, *chosen, "--out", tmp_path / "all") == 0
    assert pq.read_table(tmp_path / "all/user/narrow").num_rows == 3001
    assert [path.name for path in (tmp_path / "all/user").iterdir()] == ["narrow"]
    capsys.readouterr()
    out = tmp_path / "new"
    assert command.run("tables", "delta", stored.path, "--since", 17, "--out", out, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["step"], document["since"]) == (STEP, 17)
    for each in document["written"]:
        table = pq.read_table(each["directory"])
        assert table.num_rows == each["rows"] <= each["of"]
    assert len(document["written"]) == 6
    assert (
        command.run("tables", "export", stored.path, "--table", "item", "--out", tmp_path / "item")
        == 0
    )
    assert "item/wide: ids share rows" in capsys.readouterr().err


def test_import_makes_a_checkpoint(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--table", "user", "--set", "wide")
    assert command.run("tables", "export", stored.path, *chosen, "--out", tmp_path / "out") == 0
    older = Stored(tmp_path / "older", before=17)
    file = tmp_path / "out/user/wide"
    assert (
        command.run("tables", "import", older.path, file, *chosen, "--out", tmp_path / "new") == 0
    )
    assert "3,001 of 3,001 rows of user/wide" in capsys.readouterr().err
    assert torch.equal(read_table(tmp_path / "new", "user", "wide"), stored.weights["user/wide"])


def test_mistakes_end_with_a_sentence(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run("tables", "list", tmp_path) == 2
    assert "neither a checkpoint nor the directory of a run" in capsys.readouterr().err
    delta = ("tables", "delta", stored.path, "--out", tmp_path / "out")
    assert command.run(*delta, "--since", 99) == 2
    assert f"is of step {STEP}" in capsys.readouterr().err
    assert command.run(*delta, "--since", 1, "--table", "usr") == 2
    assert "did you mean 'user'" in capsys.readouterr().err
