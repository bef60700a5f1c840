"""Make `.typing/prismrec`, a tree of links that shows type checkers the mounted packages in one place.

The import finder of an editable installation is code, which type checkers do not run. `make check`
calls this script before mypy; `PYTHONPATH=.typing` also runs the checkout where it is not installed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # as a script, only its own folder is on the path
    sys.path.insert(0, str(ROOT))

from tests.helpers.source_tree import package_roots  # noqa: E402


def make_tree(directory: Path) -> Path:
    """Replace `directory` by a tree of links to the packages; the folder of the root package."""
    shutil.rmtree(directory, ignore_errors=True)
    roots = package_roots()
    trunk_name = min(roots, key=len)
    trunk = directory / trunk_name
    trunk.mkdir(parents=True)
    for path in sorted(roots[trunk_name].iterdir()):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            (trunk / path.name).symlink_to(path)
    for name, root in roots.items():
        if name != trunk_name:
            (trunk / name.rpartition(".")[2]).symlink_to(root)
    return trunk


if __name__ == "__main__":
    make_tree(ROOT / ".typing")
