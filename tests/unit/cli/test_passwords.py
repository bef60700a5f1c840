"""No command that goes to a cluster takes a password on its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.cli.main import main
from tests.helpers.source_tree import ROOT

RECIPES = ROOT / "jobs/recipes"
PLANTED = 'tracking.uri="http://me:pl4nted@10.0.0.1:5000"'


@pytest.mark.parametrize("where", [["--address", "auto"], ['workers.address="auto"']])
@pytest.mark.parametrize("command", ["train", "online", "tune"])
def test_refused_and_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, where: list[str]
) -> None:
    recipe = RECIPES / ("online.toml" if command == "online" else "demo.toml")
    space = tmp_path / "space.toml"
    space.write_text('"embedding.dim" = { choice = [8, 16] }\n')
    options = ["--space", str(space)] if command == "tune" else []
    with pytest.raises(SystemExit) as left:
        main([command, str(recipe), PLANTED, *where, *options])
    said = capfd.readouterr()
    assert left.value.code == 2
    assert said.err.startswith("error: tracking.uri: holds a password or a key on the command line")
    assert "pl4nted" not in said.out + said.err
