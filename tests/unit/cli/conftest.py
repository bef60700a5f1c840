"""A real SQLite-backed MLflow for the commands that ask the registry."""

from __future__ import annotations

from tests.unit.tracking.conftest import empty_store, section

__all__ = ["empty_store", "section"]
