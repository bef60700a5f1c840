"""How a trial that fails says why, from its own process to the table of the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismrec.config import UserError
from prismrec.jobs.order import Order
from prismrec.jobs.tune import search as searching
from prismrec.jobs.tune import trial
from prismrec.jobs.tune.files import SearchFiles, new_search
from prismrec.jobs.tune.search import put_down
from prismrec.jobs.tune.trial import run_trial
from tests.unit.tune.test_files import SPACE, recipe


class Tracker:
    """An MLflow run that nobody reads."""

    run_id, uri = "r1", "sqlite:///mlflow.db"

    def log_parameters(self, parameters: object) -> None:
        pass

    def log_tags(self, tags: object) -> None:
        pass

    def close(self, status: str) -> None:
        pass


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchFiles:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (trial, searching):
        monkeypatch.setattr(module, "trial_tracker", lambda *_: Tracker())
    search = new_search(recipe(tmp_path), SPACE, [{"embedding.dim": 4}])
    search.files.record({"folder": str(tmp_path), "threads": None})
    search.add_trials([recipe(tmp_path)])
    return search


def _try(search: SearchFiles, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def work(order: dict[str, Any]) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(trial, "work", work)
    config = {"directory": str(search.directory), "trial": 0}
    if error is None:
        run_trial(config)
    else:
        with pytest.raises(type(error)):
            run_trial(config)


def test_a_trial_that_fails_says_its_own_error(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    _try(search, monkeypatch, RuntimeError("CUDA out of memory.\nTried to allocate"))
    put_down(search, 0, "failed")
    (stands,) = search.trials()
    assert stands.state == "failed"
    assert stands.error.startswith("RuntimeError: CUDA out of memory.; see /")


def test_a_resumed_search_tries_lost_trials_again_and_no_mistakes(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    _try(search, monkeypatch, RuntimeError("CUDA out of memory."))
    put_down(search, 0, "failed")
    search.try_again()
    (stands,) = search.trials()
    assert (stands.state, stands.error) == ("running", "")
    monkeypatch.setattr(trial, "work", _mistaken)
    run_trial({"directory": str(search.directory), "trial": 0})
    search.try_again()
    assert search.trials()[0].state == "failed"


def _mistaken(order: Order) -> None:
    raise UserError("step 3: the loss is not finite")


def test_a_trial_that_was_lost_says_so(search: SearchFiles) -> None:
    put_down(search, 0, "failed")
    assert "lost more often than workers.max_failures allows" in search.trials()[0].error


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_an_error_that_a_later_try_did_not_meet_is_forgotten(
    search: SearchFiles, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    _try(search, monkeypatch, RuntimeError())
    assert search.trials()[0].error.startswith("RuntimeError; see /")
    if state == "finished":
        _try(search, monkeypatch, None)
    else:
        put_down(search, 0, "stopped")
    assert (search.trials()[0].state, search.trials()[0].error) == (state, "")
