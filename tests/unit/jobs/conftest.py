"""A registry in SQLite that these tests ask and never write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.tracking.conftest import empty_store

__all__ = ["empty_store"]


@pytest.fixture(scope="session")
def uri(empty_store: Path) -> str:
    """Tracking URI of a registry without models."""
    return f"sqlite:///{empty_store}"
