"""The source files of the checkout, by package, for tests that read them."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _listed(option: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return [line.strip() for line in parser["options"][option].splitlines() if line.strip()]


def package_roots() -> dict[str, Path]:
    """Folders that setup.cfg mounts as packages, by package name."""
    pairs = (line.split("=") for line in _listed("package_dir"))
    return {name.strip(): ROOT / folder.strip() for name, folder in pairs}


def listed_packages() -> list[str]:
    """Packages that setup.cfg ships."""
    return _listed("packages")


def packages_on_disk() -> dict[str, Path]:
    """Every folder with Python files below the mounted folders, by package name."""
    found: dict[str, Path] = {}
    for name, root in package_roots().items():
        for path in sorted(root.rglob("*.py")):
            parts = path.parent.relative_to(root).parts
            found[".".join((name, *parts))] = path.parent
    return found


def shipped_modules() -> Iterator[tuple[str, Path]]:
    """Name and file of every module of every package on disk."""
    for package, folder in packages_on_disk().items():
        for path in sorted(folder.glob("*.py")):
            yield (package if path.stem == "__init__" else f"{package}.{path.stem}"), path


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(), filename=str(path))
