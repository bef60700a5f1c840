"""The files that the ids of a recipe's tables are read by, and the copies that runs keep of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.ids import SemanticIds, VocabularyIds
from prismrec.data.source import resolve_filesystem

_NAMES = {"vocabulary": "vocabulary", "semantic": "codes"}
"""What a copy is called, by the kind of ids."""


def id_files(recipe: Recipe) -> dict[str, VocabularyIds | SemanticIds]:
    """What names the files of the tables that have one, by table, in the order of the features."""
    options = {
        feature.table_name: recipe.embedding.tables.get(feature.table_name)
        for feature in recipe.features.sparse
    }
    return {
        name: each.ids
        for name, each in options.items()
        if each is not None and isinstance(each.ids, VocabularyIds | SemanticIds)
    }


def copied_files(recipe: Recipe, directory: Path) -> dict[str, Path]:
    """Where a directory keeps its copy of each file of a recipe, by table."""
    return {
        name: directory / f"{_NAMES[ids.kind]}-{number:04d}.parquet"
        for number, (name, ids) in enumerate(id_files(recipe).items())
    }


def with_copies(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe, with the copies in a directory in the place of its files."""
    return _with_paths(recipe, {k: str(v) for k, v in copied_files(recipe, directory).items()})


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe, with local paths of its files that mean the same in every process."""
    paths = {
        name: options.path if "://" in options.path else str(Path(options.path).absolute())
        for name, options in id_files(recipe).items()
    }
    return _with_paths(recipe, paths)


def copy_id_files(recipe: Recipe, directory: Path, digests: Mapping[str, str]) -> None:
    """Copy a recipe's files to where `copied_files` expects them, unless they are there.

    Args:
        recipe: names the files.
        directory: exists.
        digests: SHA-256 by table of what was read.

    Raises:
        UserError: a file cannot be read, or is not the one that was read.
    """
    for name, file in copied_files(recipe, directory).items():
        if file.is_file() and _sha256(file) == digests[name]:
            continue
        path, where = id_files(recipe)[name].path, f"embedding.tables.{name}.ids.path"
        try:
            system, opened = resolve_filesystem(path)
            with system.open_input_stream(opened) as stream, file.open("wb") as out:
                shutil.copyfileobj(stream, out)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{where}: {path} cannot be read ({str(error).splitlines()[0]}); put the file back "
                "or correct the path"
            ) from None
        if _sha256(file) != digests[name]:
            raise UserError(f"{where}: {path} was changed while the run started; start again")


def _with_paths(recipe: Recipe, paths: Mapping[str, str]) -> Recipe:
    if not paths:
        return recipe
    tables = dict(recipe.embedding.tables)
    for name, path in paths.items():
        ids = tables[name].ids.model_copy(update={"path": path})
        tables[name] = tables[name].model_copy(update={"ids": ids})
    embedding = recipe.embedding.model_copy(update={"tables": tables})
    return recipe.model_copy(update={"embedding": embedding})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
