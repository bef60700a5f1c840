"""The wheel, installed into a new environment that sees the libraries of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.helpers.source_tree import ROOT, package_roots

METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources: an old `build/` folder would be packed as well."""
    source = tmp_path_factory.mktemp("source")
    for name in METADATA:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    for root in package_roots().values():
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(root, source / root.relative_to(ROOT), ignore=ignore)
    out = tmp_path_factory.mktemp("wheels")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("prismrec-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an environment that holds the wheel."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    python = place / "bin/python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "stack.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_command(
    directory: Path, *command: str | Path, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command as a new user would: from another directory, without our Python settings."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        list(command),
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
