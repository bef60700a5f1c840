"""The shape of the tree: packages listed, nothing in the way of the standard library, files small."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.source_tree import (
    ROOT,
    listed_packages,
    package_roots,
    packages_on_disk,
    parse,
    shipped_modules,
)

FOLDERS = ("platform", "embeddings", "models", "jobs", "cluster", "tests", "benchmarks")
MOUNTED = ("models", "embeddings", "jobs", "cluster")
VAGUE = {"utils", "util", "helper", "common", "manager", "handler", "misc"}
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 500, 60, 6
LONGER = {"platform/prismrec/train/loop.py _train": 120}
"""The loop is read top to bottom in one place, so it may take two screens."""

SOURCES = [
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "out" not in path.parts
]
BUDGETED = [path for _, path in shipped_modules()] + sorted((ROOT / "tests/helpers").glob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_on_disk_is_listed_and_has_an_init() -> None:
    disk = packages_on_disk()
    assert sorted(disk) == sorted(listed_packages())
    assert [name for name, folder in disk.items() if not (folder / "__init__.py").is_file()] == []


def test_data_files_inside_packages_are_listed_as_package_data() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = {
        path
        for package, patterns in parser["options.package_data"].items()
        for pattern in patterns.split()
        for path in packages_on_disk()[package].glob(pattern)
    }
    found = {
        path
        for root in package_roots().values()
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert sorted(map(_name, found - listed)) == []


def test_top_level_folders() -> None:
    for name in FOLDERS:
        assert (ROOT / name).is_dir()
    for name in ("setup.cfg", "pyproject.toml", "Makefile", "LICENSE", "NOTICE"):
        assert (ROOT / name).is_file()


def test_nothing_shadows_the_standard_platform_module() -> None:
    assert list((ROOT / "platform").glob("*.py")) == []
    code = "import platform; print(platform.machine())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()


def test_no_mounted_folder_is_imported_by_its_bare_name() -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] in MOUNTED]
    assert loaded == []
    bare = [
        f"{_name(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(parse(path))
        for module in _imported(node)
        if module.split(".")[0] in MOUNTED
    ]
    assert bare == []


def test_names_say_something() -> None:
    assert [_name(path) for path in SOURCES if set(path.stem.split("_")) & VAGUE] == []


@pytest.mark.parametrize("path", BUDGETED, ids=_name)
def test_size_budgets(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{_name(path)} has {lines} lines; split it by topic"
    # a command's options are its arguments, and only the command line calls it
    is_command = path.is_relative_to(ROOT / "platform/prismrec/cli")
    for function in _functions(parse(path)):
        size = (function.end_lineno or 0) - function.lineno + 1
        where = f"{_name(path)}:{function.lineno} {function.name}"
        limit = LONGER.get(f"{_name(path)} {function.name}", MAX_FUNCTION_LINES)
        assert size <= limit, f"{where} has {size} lines"
        count = _count_arguments(function)
        assert is_command or count <= MAX_ARGUMENTS, f"{where} takes {count} arguments"


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _count_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([each for each in every if each.arg not in ("self", "cls")])


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
