"""Growth of a process over a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from benchmarks.soak import MIB, Look, growth, page


def looks(per_1000_mib: float, files: int = 20, late_threads: int = 8) -> list[Look]:
    """Three looks at each of 20 saved steps; one of three meets a checkpoint being written."""
    found = []
    for step in range(500, 10_500, 500):
        base = int((100 + per_1000_mib * step / 1000) * MIB)
        threads = late_threads if step >= 7_500 else 8
        found += [
            Look(step, base + more * MIB, files + more, threads + more) for more in (0, 0, 50)
        ]
    return found


def test_the_slope_is_that_of_the_second_half() -> None:
    found = growth(looks(0.5))
    assert found.per_1000_mib == pytest.approx(0.5, abs=1e-6)
    assert (found.start_mib, found.end_mib) == (pytest.approx(102.5), pytest.approx(105))
    assert found.files == (20, 20)
    assert found.holds
    assert not growth(looks(1.5)).holds
    assert not growth(looks(0, late_threads=9)).holds


def test_the_page_says_whether_it_holds() -> None:
    assert "not\nat all, holds." in page({"rank 0": growth(looks(0.5))}, 10_000, 500, 9.5)
    assert "does not hold" in page({"rank 0": growth(looks(1.5))}, 10_000, 500, 9.5)


def _soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, saved: Callable[[Path], int]
) -> None:
    """Look at a program that stands for a run, in a directory with one."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(soak.commands, "PROGRAM", str(program))
    monkeypatch.setattr(soak, "write_world", lambda *_: None)
    monkeypatch.setattr(soak, "_saved", saved)
    (tmp_path / "runs/small-1").mkdir(parents=True)
    soak.soak(tmp_path, 10, 5)


def test_a_run_without_a_look_at_every_process_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=r"looked at no process, not at \['driver', 'rank 0', "):
        _soak(tmp_path, monkeypatch, "exit 0", lambda _: 0)


def test_an_interrupt_ends_the_run_and_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below: list[psutil.Process] = []
    others = set(psutil.Process().children(recursive=True))  # such as other tests' browser

    def interrupted(_: Path) -> int:
        below[:] = set(psutil.Process().children(recursive=True)) - others
        if len(below) >= 2:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        _soak(tmp_path, monkeypatch, "sleep 60 & sleep 60", interrupted)
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not alive


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    """2,000 steps: caches still fill, and a quarter with ten evaluations and checkpoints has few looks.

    What each of these left open would be ten more.
    """
    found = soak.soak(tmp_path, 2000, 50)
    assert sorted(found) == ["driver", "rank 0", "rank 1"]
    for each in map(growth, found.values()):
        assert each.per_1000_mib < 10
        assert each.files[1] - each.files[0] < 5
        assert each.threads[1] - each.threads[0] < 5
