"""What the tests of disturbed runs have in common: rows, a folder with the recipe, an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ray import commands
from tests.ray.commands import Home
from tests.ray.ledger import every_row_once


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few thousand rows."""
    return commands.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def at(tmp_path: Path, data: Path) -> Home:
    """A folder with a recipe for them."""
    return commands.home(tmp_path, data)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Any]:
    """Test metrics of a run on one machine that nobody touched."""
    at = commands.home(tmp_path_factory.mktemp("undisturbed"), data)
    code, out, err = commands.train(at, "--json", "--no-ray")
    assert code == 0, err
    commands.is_ours(err)
    every_row_once(at)
    return dict(json.loads(out)["test"])
