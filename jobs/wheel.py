"""prismrec as a wheel, packed from where this process imports it.

An installed package and an editable checkout give the same wheel, without building anything. It
requires nothing: a node has torch and the rest already, and a second torch in front of the node's
own would be loaded instead of it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import zipfile
from collections.abc import Iterator
from pathlib import Path

import prismrec

MOUNTED = ("embeddings", "models", "jobs", "cluster")
"""Packages that a checkout keeps beside `prismrec`, not in it."""
_SHIPPED = (".py", ".typed", ".html", ".css", ".js")
"""Code and what it reads. A checkout's recipes stay here: they may name what is nobody else's business,
and a job brings its own."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack_wheel(directory: Path) -> Path:
    """Write the wheel into a directory.

    The name holds a digest of the contents: Ray knows a wheel by its name alone, and would give a
    second job the files of the first.

    Returns:
        The file.
    """
    files = dict(sorted(_sources()))
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    build = f"0{digest.hexdigest()[:16]}"
    out = directory / f"prismrec-{prismrec.__version__}-{build}-py3-none-any.whl"
    info = f"prismrec-{prismrec.__version__}.dist-info"
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents |= {f"{info}/{name}": text.encode() for name, text in _metadata(build).items()}
    lines = [f"{name},{_hash(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return out


def _sources() -> Iterator[tuple[str, Path]]:
    """Every file of the package by its name in the wheel."""
    roots = {"prismrec": Path(prismrec.__path__[0])}
    for name in MOUNTED:
        spec = importlib.util.find_spec(f"prismrec.{name}")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"prismrec.{name} is not installed")
        roots[f"prismrec/{name}"] = Path(spec.submodule_search_locations[0])
    for prefix, root in roots.items():
        for path in root.rglob("*"):
            if path.is_file() and path.suffix in _SHIPPED:
                yield f"{prefix}/{path.relative_to(root).as_posix()}", path


def _metadata(build: str) -> dict[str, str]:
    return {
        "METADATA": (
            f"Metadata-Version: 2.1\nName: prismrec\nVersion: {prismrec.__version__}\n"
            "Requires-Python: >=3.11\n"
        ),
        "WHEEL": (
            "Wheel-Version: 1.0\nGenerator: prismrec\nRoot-Is-Purelib: true\n"
            f"Tag: py3-none-any\nBuild: {build}\n"
        ),
        "entry_points.txt": "[console_scripts]\nprismrec = prismrec.cli.main:main\n",
    }


def _hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"
