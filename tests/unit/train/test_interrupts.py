from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from prismrec.train.interrupts import StopRequest
from prismrec.train.process_group import Ranks
from prismrec.train.signals import ask, asked, signals_ask, signals_end

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(tmp_path: Path, number: signal.Signals) -> None:
    path, before = tmp_path / "stop", signal.getsignal(number)
    with signals_ask(path):
        assert asked(path) == ""
        os.kill(os.getpid(), number)
        assert asked(path) == number.name
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_sigterm_ends_by_an_exception(tmp_path: Path) -> None:
    with signals_end():
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
        with signals_ask(tmp_path / "stop"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked(tmp_path / "stop") == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_exit_code_stays_that_of_the_signal() -> None:
    def told() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise SystemExit(1) from None  # as `ray.get` does

    with pytest.raises(SystemExit, match="143"), signals_end():
        told()
    with pytest.raises(SystemExit, match="2"), signals_end():
        raise SystemExit(2)


def test_the_outermost_file_takes_the_request(tmp_path: Path) -> None:
    with signals_ask(tmp_path / "run"), signals_ask(tmp_path / "start"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_thread_uses_what_the_main_thread_installed(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def train() -> None:
        with signals_ask(tmp_path / "stop"):
            inside.set()
            leave.wait(10)

    with signals_end():
        thread = threading.Thread(target=train)
        thread.start()
        assert inside.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        leave.set()
        thread.join()
        assert asked(tmp_path / "stop") == "SIGTERM"
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_in_any_file_is_agreed_on_and_stays(tmp_path: Path) -> None:
    paths = [tmp_path / "run", tmp_path / "start"]
    request = StopRequest(paths, ALONE)
    assert request.agreed() == ""
    ask(paths[1], signal.SIGINT)
    ask(paths[1], signal.SIGTERM)
    assert StopRequest(paths, ALONE).agreed() == "SIGINT"
    late = StopRequest(paths, ALONE)
    assert late.agreed() == "SIGINT"
    paths[1].unlink()
    assert late.agreed() == "SIGINT"
