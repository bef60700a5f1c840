"""When a rank counts as hung, when it does not any more, and whom the message names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from prismrec.train.process_group import Ranks
from prismrec.train.run_files import RunFiles
from prismrec.train.watchdog import EXIT_CODE, Sign, Watchdog

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
TIMEOUT_S = 0.2


@dataclass
class Ends:
    """Takes the place of the end of the process."""

    codes: list[int] = field(default_factory=list)

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        raise SystemExit  # of the watching thread


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    ends = Ends()
    monkeypatch.setattr(os, "_exit", ends)
    return ends


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    (tmp_path / "log").mkdir()
    return RunFiles(tmp_path)


def until(holds: Callable[[], object]) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_stands_still_is_ended_with_a_sentence(files: RunFiles, ends: Ends) -> None:
    with Watchdog(ALONE, files, TIMEOUT_S) as dog:
        with dog.paused():
            pass  # from now on it watches
        until(lambda: ends.codes)
    assert ends.codes == [EXIT_CODE]
    said = "no step was finished in 0.2 s after step 0; all ranks live, at a step; "
    assert said in files.read_hang()
    assert "most recent call first" in files.log(0).read_text()


@pytest.mark.parametrize("how", ["step", "pause", "end"])
def test_who_moves_on_in_the_grace_is_not_ended(
    files: RunFiles, ends: Ends, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves on as the stacks are written, with which the grace begins."""
    written = []

    def move_on(timeout_s: float) -> None:
        written.append(timeout_s)
        if how == "step":
            dog.moved(len(written))
        elif how == "end":
            dog._ended.set()
        else:
            with dog.paused():
                pass

    dog = Watchdog(ALONE, files, TIMEOUT_S)
    monkeypatch.setattr(dog, "_write_stacks", move_on)
    with dog:
        with dog.paused():
            pass
        until(lambda: len(written) >= (1 if how == "end" else 2))
    assert (ends.codes, files.read_hang()) == ([], "")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(4, "an evaluated batch")] * 2, "all ranks live, at an evaluated batch"),
        ([(4, "waiting for data")] * 2, "all ranks live, at waiting for data"),
        ([(4, "a step"), (4, "waiting for data")], "rank 1 did not get past waiting for data"),
        ([(4, "an evaluated batch"), (3, "a step")], "rank 1 did not arrive"),
        (
            [(4, "an evaluated batch"), (4, "a step"), (4, "an evaluated batch")],
            "all ranks live, rank 0, 2 at an evaluated batch, rank 1 at a step",
        ),
    ],
)
def test_only_ranks_that_differ_are_blamed(
    files: RunFiles, ends: Ends, places: list[tuple[int, str]], said: str
) -> None:
    ranks = Ranks(0, len(places), 0, len(places), torch.device("cpu"))
    signs = [
        Sign(rank, "node", rank, 0.0, 1, step, at, is_stuck=True)
        for rank, (step, at) in enumerate(places)
    ]
    message = Watchdog(ranks, files, 1.0)._message(
        1.0, dict(enumerate(signs)), [*range(len(signs))]
    )
    assert f"; {said}; the stacks of every rank" in message
