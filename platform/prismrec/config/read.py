"""A recipe file as a nested mapping, on top of the file that it names as its `base`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismrec.config.errors import UserError

BASE = "base"
"""Key at the top of a recipe file: another file, beside it, whose keys it has unless it says otherwise."""


def read(path: Path) -> dict[str, Any]:
    """The keys of a TOML file and of its base, and of that one's.

    Raises:
        UserError: a file is missing or is not TOML, or files are each other's base.
    """
    return _read(path, ())


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `own`: tables key by key, anything else as a whole.

    A table of `own` that says a `name` or a `kind` is another thing than the base's, and replaces it.

    >>> merged({"a": {"x": 1, "y": 2}, "b": [1, 2]}, {"a": {"y": 3}, "b": [4]})
    {'a': {'x': 1, 'y': 3}, 'b': [4]}
    >>> merged({"a": {"name": "fm", "x": 1}}, {"a": {"name": "dnn"}})
    {'a': {'name': 'dnn'}}
    """
    tree = dict(base)
    for key, value in own.items():
        below = tree.get(key)
        is_same = isinstance(value, Mapping) and not {"name", "kind"} & value.keys()
        tree[key] = merged(below, value) if is_same and isinstance(below, Mapping) else value
    return tree


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    own = _toml(path, above)
    base = own.pop(BASE, None)
    if base is None:
        return own
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: base: must be the path of a recipe file, got {base!r}")
    place, chain = path.parent / base, (*above, path)
    if place.resolve() in (each.resolve() for each in chain):
        raise UserError(f"{path}: base: '{base}' is built on this file itself; name another one")
    return merged(_read(place, chain), own)


def _toml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    said_by = f", which {above[-1]} names as its base" if above else ""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file{said_by}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path}: not a TOML file{said_by}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML{said_by}: {error}") from None
