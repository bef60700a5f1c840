"""A real SQLite-backed MLflow for every test, from a template made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from prismrec.config.train import TrackingSection
from prismrec.tracking.uri import quiet_mlflow
from tests.helpers.mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables; making them takes seconds."""
    quiet_mlflow()
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def section(empty_store: Path, tmp_path: Path) -> TrackingSection:
    """A recipe's tracking section with a store of its own."""
    path = tmp_path / "track" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    return TrackingSection(uri=f"sqlite:///{path}", experiment="tests")


@pytest.fixture
def server(empty_store: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    """A tracking server that runs."""
    directory = tmp_path / "server"
    directory.mkdir()
    shutil.copy(empty_store, directory / "server.db")
    started = MlflowServer(directory)
    started.start()
    yield started
    started.kill()
