"""What libraries say goes to the log file, and to the terminal when that is asked for."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismrec.train.quiet import library_output


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers, root.level = handlers, level


def talk() -> None:
    logging.getLogger("torchrec.planner").warning("a plan")
    logging.getLogger("a.library").info("a start")
    warnings.warn("a warning", stacklevel=1)
    os.write(2, b"native words\n")


def fail() -> None:
    os.write(2, b"second\n")
    raise ValueError("broken")


def test_everything_lands_in_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], root_logger: logging.Logger
) -> None:
    before = root_logger.handlers[:]
    with library_output(tmp_path / "log" / "rank-0.log", verbose=False):
        talk()
    os.write(2, b"the terminal again\n")
    text = (tmp_path / "log" / "rank-0.log").read_text()
    for words in (
        "WARNING torchrec.planner: a plan",
        "INFO a.library: a start",
        "a warning",
        "native words",
    ):
        assert words in text
    assert capfd.readouterr().err == "the terminal again\n"
    assert root_logger.handlers == before


def test_a_second_run_appends_and_a_failure_gives_the_terminal_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rank-0.log"
    with library_output(path, verbose=False):
        os.write(2, b"first\n")
    with pytest.raises(ValueError, match="broken"), library_output(path, verbose=False):
        fail()
    os.write(2, b"terminal\n")
    assert path.read_text().splitlines() == ["first", "second"]
    assert capfd.readouterr().err == "terminal\n"


def test_verbose_leaves_it_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with library_output(tmp_path / "rank-0.log", verbose=True):
        os.write(2, b"native words\n")
    assert "native words" in capfd.readouterr().err
    assert not (tmp_path / "rank-0.log").exists()
