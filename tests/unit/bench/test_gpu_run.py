"""The runner of the GPU measurements: every part has a deadline, and the report names what failed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.report import main as report
from benchmarks.gpu.report import markdown, merged
from benchmarks.gpu.results import Results
from benchmarks.gpu.run_all import Setting, arguments, failed, run

WRITES = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
rows = [["a", 1]]
path.write_text(json.dumps({"tables": [{"title": "T", "columns": ["x", "n"], "note": "", "rows": rows}]}))
"""


def _part(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, f"Part {name}", (sys.executable, "-c", code), seconds, "first")


def test_a_run_goes_on_after_failures_and_names_them(tmp_path: Path) -> None:
    parts = [
        _part("broken", "import sys; print('a reason'); sys.exit(3)"),
        _part("slow", WRITES + "\ntime.sleep(60)", seconds=2),
        _part("silent", "print('nothing is written')"),
        *chosen(["ceilings"]),
    ]
    document = run(parts, Setting("cpu", "trial", tmp_path, 5, "the command"))
    assert failed(document) == ["broken", "slow", "silent"]
    on_disk = json.loads((tmp_path / "gpu.json").read_text())
    assert on_disk == json.loads(json.dumps(document))
    statuses = {name: part["status"] for name, part in on_disk["parts"].items()}
    assert statuses == {
        "broken": "failed with exit code 3",
        "slow": "ended after 2 s, its deadline",
        "silent": "failed: it wrote no results",
        "ceilings": "done",
    }
    assert on_disk["parts"]["slow"]["tables"][0]["rows"] == [["a", 1]], "what it had is kept"
    assert on_disk["parts"]["ceilings"]["facts"]["copy in device memory"] > 0
    page = (tmp_path / "gpu.md").read_text()
    assert "| broken | failed with exit code 3 |" in page
    assert "a reason" in page
    assert "A trial at small sizes: the numbers say nothing." in page
    assert "| fp32 matrix product | 128 x 128 x 128 |" in page
    assert "nothing is written" in (tmp_path / "gpu.log").read_text()


def test_an_interrupt_ends_the_part_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([_part("long", "import time; time.sleep(60)")], _setting(tmp_path, "c"))
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_part_runs_to_its_end_at_trial_size(tmp_path: Path) -> None:
    document = run(PARTS, Setting("cpu", "trial", tmp_path, 20, "the command"))
    assert failed(document) == [], (tmp_path / "gpu.log").read_text()[-4000:]
    for name, part in document["parts"].items():
        assert any(table["rows"] for table in part["tables"]), name


def test_what_has_no_time_is_not_run(tmp_path: Path) -> None:
    document = run([_part("late", WRITES)], Setting("cpu", "trial", tmp_path, 0, "c"))
    assert document["parts"]["late"]["status"] == "not run: no time was left"
    assert failed(document) == ["late"]


def test_parts_are_chosen_by_name_and_by_call() -> None:
    assert chosen([]) == list(PARTS)
    assert [part.name for part in chosen(["right"])] == ["right"]
    for group in ("first", "second"):
        of_call = chosen([group])
        assert of_call[0].name == "ceilings", "each call measures what the rest is held against"
        assert {part.group for part in of_call} <= {group, "both"}
    both = {part.name for group in ("first", "second") for part in chosen([group])}
    assert both == {part.name for part in PARTS}
    # A call of the device may take ten minutes, and some of them are for unpacking.
    for group in ("first", "second"):
        assert sum(part.seconds for part in chosen([group])) <= 570
    with pytest.raises(ValueError, match="no part is called rihgt; there are ceilings, "):
        chosen(["rihgt"])
    with pytest.raises(SystemExit):
        arguments(["--parts", "rihgt"])


def test_calls_become_one_report(tmp_path: Path) -> None:
    first = run([_part("a", WRITES), _part("b", "raise SystemExit(1)")], _setting(tmp_path, "one"))
    second = run([_part("b", WRITES)], _setting(tmp_path, "two"))
    whole = merged([first, second])
    assert failed(whole) == []
    assert whole["commands"] == ["one", "two"]
    assert "one\ntwo" in markdown(whole)
    paths = []
    for name, document in (("first", first), ("second", second)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(document))
    report([*paths, "--out", str(tmp_path / "h")])
    assert json.loads((tmp_path / "h.json").read_text()) == json.loads(json.dumps(whole))
    assert (tmp_path / "h.md").read_text() == markdown(whole)
    assert not (tmp_path / "h.svg").exists(), "the tables were not measured"
    with pytest.raises(ValueError, match="the calls differ in their size: full, trial"):
        merged([first, {**second, "size": "full"}])


def _setting(out: Path, command: str) -> Setting:
    return Setting("cpu", "trial", out, 5, command)


def test_results_are_on_disk_after_every_line(tmp_path: Path) -> None:
    results = Results(tmp_path / "found.json")
    table = results.table("T", ["x", "y"], "note")
    results.add(table, "a", 1.5)
    assert json.loads((tmp_path / "found.json").read_text()) == results.document()
    results.goal("enough", 2.0, 1.5)
    (goal,) = json.loads((tmp_path / "found.json").read_text())["goals"]
    assert goal == {"text": "enough", "wanted": 2.0, "got": 1.5, "met": False}
    with pytest.raises(ValueError, match="T: 1 cells for 2 columns"):
        results.add(table, "a")
