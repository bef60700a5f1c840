"""Real public data where it lies beside the checkout, and a way to read what an adapter wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prismrec.data.adapters import prepare

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`real(adapter, folder)`: the prepared public data set, made once; skips where it is absent."""
    made: dict[str, Path] = {}

    def prepared(adapter: str, folder: str) -> Path:
        source = DATA / folder
        if not source.is_dir():
            pytest.skip(f"no real data: {source} is absent")
        if adapter not in made:
            made[adapter] = tmp_path_factory.mktemp("real") / adapter
            prepare(adapter, source, made[adapter])
        return made[adapter]

    return prepared


@pytest.fixture(scope="session")
def raw() -> Callable[[str], Path]:
    """`raw(folder)`: the public files themselves; skips where they are absent."""

    def found(folder: str) -> Path:
        if not (DATA / folder).is_dir():
            pytest.skip(f"no real data: {DATA / folder} is absent")
        return DATA / folder

    return found
