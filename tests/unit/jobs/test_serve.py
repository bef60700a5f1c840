"""Where a server keeps its token."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.cluster import state
from prismrec.jobs.serve import default_token_file


def test_the_token_is_in_the_one_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(state.DIRECTORY, raising=False)
    assert default_token_file() == tmp_path / "prismrec/serve.token"
    monkeypatch.setenv(state.DIRECTORY, str(tmp_path / "mine"))
    assert default_token_file() == tmp_path / "mine/serve.token"
