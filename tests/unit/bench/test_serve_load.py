"""The page of the load on servers names the command that gave it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import serve_load


def test_the_page_has_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["models:/demo@champion", "--data", "my data", "--clients", "2", "--out"]
    monkeypatch.setattr(sys, "argv", ["serve_load", *asked, str(tmp_path / "page")])
    monkeypatch.setattr(serve_load, "measure", lambda options: {"clients": options.clients})
    monkeypatch.setattr(serve_load, "page", lambda _, command: command)
    serve_load.main()
    assert (tmp_path / "page.md").read_text() == (
        "python -m benchmarks.serve_load models:/demo@champion --data 'my data' --clients 2 "
        f"--out {tmp_path}/page"
    )
