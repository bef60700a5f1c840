from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from prismrec.cli.main import app
from prismrec.cluster import doctor
from prismrec.cluster.doctor import Check
from tests.helpers.command import run

RECIPE = """
name = "small"
tasks = [{ name = "click", label = "is_click" }]
[data]
path = "somewhere"
[features]
sparse = ["user"]
[model]
name = "dcnv2"
"""
HEAVY = ("torch", "torchrec", "fbgemm_gpu", "ray", "mlflow", "pyarrow", "numpy", "matplotlib")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


COMMANDS = list(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example_of_that_command(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    last = result.output.strip().splitlines()[-1].strip()
    assert last.startswith(f"Example: prismrec {' '.join(words)}".strip())


def test_all_topics_are_there() -> None:
    known = {("doctor",), ("config",), ("data", "synth"), ("data", "prepare"), ("data", "inspect")}
    assert known <= set(COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from prismrec.cli.main import main
try:
    main(["--help"])
except SystemExit as left:
    print([name for name in {HEAVY!r} if name in sys.modules], left.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[] 0"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == "prismrec 0.1.0\n"


def test_a_wrong_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctr") == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err


def test_a_users_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "nowhere.toml") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: nowhere.toml: no such recipe file\n"
    assert run("--verbose", "config", "nowhere.toml") == 2
    verbose = capsys.readouterr().err
    assert verbose.startswith("Traceback")
    assert verbose.endswith("error: nowhere.toml: no such recipe file\n")


def test_a_failure_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[Check]:
        raise RuntimeError("wires [crossed]")

    monkeypatch.setattr(doctor, "run_checks", fail)
    assert run("doctor") == 1
    expected = "error: RuntimeError: wires [crossed] (prismrec --verbose COMMAND shows where)"
    assert [line for line in capsys.readouterr().err.splitlines() if line.strip()][-1] == expected
    assert run("--verbose", "doctor") == 1
    assert "in fail" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_checks", interrupt)
    assert run("doctor") == 130


def test_doctor_prints_fixes_and_fails_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        Check("good", "ok", "there"),
        Check("slow", "warn", "little", "get more"),
        Check("bad", "fail", "broken [x]", "mend it"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda: checks)
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert "broken [x]" in out
    assert out.endswith("What to do\nslow: get more\nbad: mend it\n")
    assert run("doctor", "--json") == 1
    assert json.loads(capsys.readouterr().out)[2] == {
        "name": "bad",
        "status": "fail",
        "found": "broken [x]",
        "fix": "mend it",
    }
    monkeypatch.setattr(doctor, "run_checks", lambda: checks[:2])
    assert run("doctor") == 0


def test_config_prints_the_resolved_recipe(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("config", str(recipe), "train.steps=5", "model.hidden=[8]") == 0
    text = tomllib.loads(capsys.readouterr().out)
    assert (text["train"]["steps"], text["model"]["hidden"]) == (5, [8])
    assert text["embedding"]["optimizer"]["learning_rate"] == 0.05
    assert run("config", str(recipe), "train.steps=5", "model.hidden=[8]", "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["train"]["steps"] == 5
    assert tree["train"]["clip_norm"] is None


def test_config_tells_every_problem_at_once(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("train.stepz=5", "embedding.dim=6", "oops", "model.dropout=2.0", "data.order='up'")
    assert run("config", str(recipe), *wrong) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {recipe}:"
    assert len(lines) == 6
    assert "did you mean 'steps'?" in "\n".join(lines)


def test_config_needs_a_recipe_or_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config") == 2
    assert "RECIPE is missing" in capsys.readouterr().err
    assert run("config", "--docs") == 0
    root = Path(__file__).resolve().parents[3]
    assert capsys.readouterr().out == (root / "docs/recipes.md").read_text()
