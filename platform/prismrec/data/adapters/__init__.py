"""Adapters: public data sets, and your own, into the data format of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prismrec.config import UserError, nearest
from prismrec.config.external import import_function
from prismrec.data.adapters import census, criteo, csv, frappe, kuairand, movielens
from prismrec.data.adapters.source import DEFAULT_OPTIONS, PrepareOptions
from prismrec.data.schema import FILE_NAME, DataSchema
from prismrec.data.write import staged

__all__ = ["ADAPTERS", "Adapter", "PrepareOptions", "find_adapter", "prepare"]

Adapter = Callable[[Path, Path, PrepareOptions], DataSchema]
"""`prepare(source, out, options)`: write the data set in `source` into the empty directory `out`."""

ADAPTERS: dict[str, Adapter] = {
    "census": census.prepare,
    "criteo": criteo.prepare,
    "csv": csv.prepare,
    "frappe": frappe.prepare,
    "kuairand": kuairand.prepare,
    "movielens": movielens.prepare,
}
"""Every adapter of the package by the name the command takes."""


def prepare(
    name: str,
    source: Path,
    out: Path,
    options: PrepareOptions = DEFAULT_OPTIONS,
    overwrite: bool = False,
) -> DataSchema:
    """Turn a source directory into a data set that appears at `out` whole or not at all.

    Args:
        name: a key of `ADAPTERS`, or `package.module:function` of an adapter of your own.
        source: the directory with the files as they were published.
        out: directory to make.
        options: what the adapter may be told.
        overwrite: replace a data set that lies at `out`.

    Raises:
        UserError: no such adapter, a file of the source is missing or wrong, or `out` is taken.
    """
    adapter = find_adapter(name)
    with staged(out, overwrite) as directory:
        schema = adapter(source, directory, options)
        if not (directory / FILE_NAME).is_file():
            raise UserError(
                f"adapter '{name}': left no {FILE_NAME}; end it with prismrec.data.write.write_parts"
            )
    return schema


def find_adapter(name: str) -> Adapter:
    """The adapter of that name, imported where the name is `package.module:function`.

    Raises:
        UserError: no such adapter.
    """
    if ":" not in name:
        if name not in ADAPTERS:
            raise UserError(f"adapter '{name}': unknown; {nearest(name, ADAPTERS)}")
        return ADAPTERS[name]
    return import_function(f"adapter '{name}'", name)
