"""What tests of commands share: an environment of their own, and a real SQLite-backed MLflow."""

from __future__ import annotations

import pytest

from tests.unit.tracking.conftest import empty_store, section

__all__ = ["empty_store", "section"]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command sets for its child processes must not reach the next test."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
