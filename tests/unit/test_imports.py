"""Imports go one way, and each heavy library stays in its folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.helpers.source_tree import parse, shipped_modules

ORDER = (
    "config",
    "data",
    "embeddings",
    "models",
    "checkpoint",
    "train",
    "analysis",
    "serving",
    "tracking",
    "cluster",
    "jobs",
    "cli",
)
"""A package may import any to its left."""

SHARDING = ("embeddings", "train", "checkpoint", "serving", "data.batch")
ALLOWED = {
    "ray": ("jobs", "cluster"),
    "mlflow": ("tracking", "serving"),
    "torchrec": SHARDING,
    "fbgemm_gpu": SHARDING,
}
"""Where a library may be imported, as packages or modules below `prismrec`."""

LAZY = {"torchrec": ("cluster.doctor",), "fbgemm_gpu": ("cluster.doctor",)}
"""Where it may be imported inside functions only, so that a broken library can be reported."""

MODULES = dict(shipped_modules())


def _imports(tree: ast.AST, depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """Every imported dotted name, its line, and how many functions stand around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, node.lineno, depth) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{each.name}", node.lineno, depth) for each in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(node, depth + inside)


def _violations(module: str, tree: ast.AST) -> list[str]:
    own = module.removeprefix("prismrec").lstrip(".")
    package = own.split(".")[0]
    found = []
    for name, line, depth in _imports(tree):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "prismrec" and target in ORDER and package:
            if ORDER.index(target) > ORDER.index(package):
                found.append(f"{module}:{line} imports prismrec.{target}, which is built on it")
        elif top in ALLOWED and not (
            _within(own, ALLOWED[top]) or (depth and _within(own, LAZY.get(top, ())))
        ):
            found.append(f"{module}:{line} imports {top}; only {', '.join(ALLOWED[top])} may")
    return found


def _within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert _violations(module, parse(MODULES[module])) == []


def test_every_package_has_its_place_in_the_order() -> None:
    packages = {name.split(".")[1] for name in MODULES if "." in name}
    assert packages - set(ORDER) == set()


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("prismrec.data.reader", "from prismrec.train import loop", 1),
        ("prismrec.data.reader", "from prismrec import train", 1),
        ("prismrec.data.reader", "def f():\n  import prismrec.cli.main", 1),
        ("prismrec.train.loop", "from prismrec.data import reader\nimport torchrec", 0),
        ("prismrec.models.zoo", "from torchrec import modules", 1),
        ("prismrec.data.batch", "import torchrec.sparse", 0),
        ("prismrec.data.batches", "import torchrec.sparse", 1),
        ("prismrec.cluster.doctor", "import fbgemm_gpu", 1),
        ("prismrec.cluster.doctor", "def f():\n  import fbgemm_gpu", 0),
        ("prismrec.cluster.network", "def f():\n  import fbgemm_gpu", 1),
        ("prismrec.train.loop", "import ray", 1),
        ("prismrec", "from prismrec.jobs import train", 0),
    ],
)
def test_the_rule_sees_what_breaks_it(module: str, source: str, wrong: int) -> None:
    assert len(_violations(module, ast.parse(source))) == wrong
