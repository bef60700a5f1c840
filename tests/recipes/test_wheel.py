"""The wheel holds everything, asks for nothing, and works from another directory."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tests.helpers.source_tree import ROOT, package_roots, packages_on_disk
from tests.recipes.conftest import run_command


def test_wheel_holds_every_module_and_the_package_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages_on_disk().items()
        for path in folder.glob("*.py")
    }
    jobs = package_roots()["prismrec.jobs"]
    expected |= {f"prismrec/jobs/{path.relative_to(jobs)}" for path in jobs.rglob("*.toml")}
    expected.add("prismrec/py.typed")
    expected |= {f"prismrec/analysis/report/page.{kind}" for kind in ("html", "css", "js")}
    kuberay = package_roots()["prismrec.cluster"] / "kuberay"
    expected |= {f"prismrec/cluster/kuberay/{path.name}" for path in kuberay.iterdir()}
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
    done = run_command(tmp_path, installed / "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_command_works_from_another_directory(installed: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path, installed / "prismrec", "--help")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_doctor_finds_nothing_broken(installed: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path, installed / "prismrec", "doctor", "--json")
    checks = json.loads(done.stdout)
    assert [check for check in checks if check["status"] == "fail"] == []
    assert done.returncode == 0
    assert done.stderr == ""
    assert {"release train", "table update", "2-rank all-to-all"} <= {c["name"] for c in checks}


def test_packaged_recipes_are_read(installed: Path, tmp_path: Path) -> None:
    (folder,) = installed.parent.glob("lib/python*/site-packages/prismrec/jobs/recipes")
    for name in ("demo.toml", "kuairand_me_dcnv2.toml", "world/dcnv2.toml"):
        recipe = folder / name
        done = run_command(tmp_path, installed / "prismrec", "config", recipe, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"]
