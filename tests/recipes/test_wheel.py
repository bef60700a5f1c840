"""The wheel holds everything, asks for nothing, and works from another directory.

It is installed into a new environment that sees the libraries of this one through a `.pth` file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.source_tree import ROOT, package_roots, packages_on_disk

METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def _run(directory: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        list(command),
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wheel_holds_every_module_and_the_package_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages_on_disk().items()
        for path in folder.glob("*.py")
    }
    jobs = package_roots()["prismrec.jobs"]
    expected |= {f"prismrec/jobs/recipes/{path.name}" for path in jobs.glob("recipes/*.toml")}
    shipped = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert shipped == expected


def test_wheel_asks_for_nothing_and_carries_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    about = {
        Path(name).name: archive.read(name).decode()
        for name in archive.namelist()
        if ".dist-info/" in name
    }
    assert "Requires-Dist" not in about["METADATA"]
    assert "License: Apache-2.0" in about["METADATA"]
    assert about["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert about["NOTICE"] == (ROOT / "NOTICE").read_text()


def test_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    code = "import platform, prismrec.models; print(platform.machine() and prismrec.__file__)"
    done = _run(tmp_path, installed / "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_command_works_from_another_directory(installed: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, installed / "prismrec", "--help")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_doctor_finds_nothing_broken(installed: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, installed / "prismrec", "doctor", "--json")
    checks = json.loads(done.stdout)
    assert [check for check in checks if check["status"] == "fail"] == []
    assert done.returncode == 0
    assert done.stderr == ""
    assert {"release train", "table update", "2-rank all-to-all"} <= {c["name"] for c in checks}


def test_packaged_recipes_are_read(installed: Path, tmp_path: Path) -> None:
    for recipe in sorted(
        installed.parent.glob("lib/python*/site-packages/prismrec/jobs/recipes/*")
    ):
        done = _run(tmp_path, installed / "prismrec", "config", recipe, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"]
