"""The files that the ids and numbers of a recipe are read by, and the copies that runs keep of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.ids import SemanticIds, VocabularyIds
from prismrec.config.numbers import NumberFeature
from prismrec.data.encode.encoders import Encoder
from prismrec.data.encode.numbers.statistics import needs_statistics
from prismrec.data.encode.numbers.vectors import one_file
from prismrec.data.encode.tables import id_digests
from prismrec.data.source import resolve_filesystem

STATISTICS = "features.statistics"
"""Name of the file of statistics among the files of a recipe."""
_OTHER_NUMBERS = "numbers would become other rows"


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a recipe names.

    Args:
        where: the key that names it.
        path: as the recipe has it.
        copy: file name of its copies.
        what: what it is, in words.
        otherwise: what another file in its place would do to a run that goes on.
    """

    where: str
    path: str
    copy: str
    what: str
    otherwise: str


def named_files(recipe: Recipe) -> dict[str, NamedFile]:
    """The files that a recipe's ids and numbers are read by.

    Returns:
        By table, in the order of the features, then that of the statistics and those of vectors.
    """
    files = {}
    for number, (name, ids) in enumerate(_id_files(recipe).items()):
        stem, what = _OF_KIND[ids.kind]
        copy, where = f"{stem}-{number:04d}.parquet", f"embedding.tables.{name}.ids.path"
        otherwise = "rows would stand for other ids"
        files[name] = NamedFile(where, ids.path, copy, what, otherwise)
    path = recipe.features.statistics
    if path is not None and needs_statistics(recipe):
        what = "file of statistics"
        files[STATISTICS] = NamedFile(
            STATISTICS, path, "statistics-0000.json", what, _OTHER_NUMBERS
        )
    return files | _vector_files(recipe)


def file_digests(recipe: Recipe, encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """SHA-256 of the files that the ids and numbers of a recipe are read by, under their names.

    Args:
        recipe: names the files.
        encoders: of every field, which know what they were made from, for ids.

    Raises:
        UserError: a file cannot be read.
    """
    digests = id_digests(recipe, encoders)
    for name, file in named_files(recipe).items():
        if name not in digests:
            try:
                system, opened = resolve_filesystem(file.path)
                with system.open_input_stream(opened) as stream:
                    digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, error) from None
    return digests


def _id_files(recipe: Recipe) -> dict[str, VocabularyIds | SemanticIds]:
    options = {
        feature.table_name: recipe.embedding.tables.get(feature.table_name)
        for feature in recipe.features.sparse
    }
    return {
        name: each.ids
        for name, each in options.items()
        if each is not None and isinstance(each.ids, VocabularyIds | SemanticIds)
    }


_OF_KIND = {"vocabulary": ("vocabulary", "vocabulary"), "semantic": ("codes", "file of codes")}
"""What a copy is called and what it is, by the kind of ids."""


def _vector_files(recipe: Recipe) -> dict[str, NamedFile]:
    """Files of vectors; those that are one have one copy."""
    files: dict[str, NamedFile] = {}
    copies: dict[str, str] = {}
    for number in recipe.features.numbers:
        for side, each in number.sides.items():
            path = one_file(each.vectors)
            ending = PurePath(path).suffix
            suffix = ending if ending in (".npz", ".npy") else ".parquet"
            copy = copies.setdefault(path, f"vectors-{len(copies):04d}{suffix}")
            where = f"features.numbers.{number.name}.similarity.{side}.vectors"
            what = "file of vectors"
            files[where] = NamedFile(where, path, copy, what, _OTHER_NUMBERS)
    return files


def copied_files(recipe: Recipe, directory: Path) -> dict[str, Path]:
    """Where a directory keeps its copy of each file of a recipe, under its name in `named_files`."""
    return {name: directory / file.copy for name, file in named_files(recipe).items()}


def with_copies(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe, with the copies in a directory in the place of its files."""
    return _with_paths(recipe, {k: str(v) for k, v in copied_files(recipe, directory).items()})


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe, with local paths of its files that mean the same in every process."""
    paths = {
        name: file.path if "://" in file.path else str(Path(file.path).absolute())
        for name, file in named_files(recipe).items()
    }
    return _with_paths(recipe, paths)


def copy_files(recipe: Recipe, directory: Path, digests: Mapping[str, str]) -> None:
    """Copy a recipe's files to where `copied_files` expects them, unless they are there.

    Args:
        recipe: names the files.
        directory: exists.
        digests: SHA-256 of what was read, under the files' names.

    Raises:
        UserError: a file cannot be read, or is not the one that was read.
    """
    for name, file in named_files(recipe).items():
        copy = directory / file.copy
        if copy.is_file() and _sha256(copy) == digests[name]:
            continue
        try:
            system, opened = resolve_filesystem(file.path)
            with system.open_input_stream(opened) as stream, copy.open("wb") as out:
                shutil.copyfileobj(stream, out)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from None
        if _sha256(copy) != digests[name]:
            raise UserError(
                f"{file.where}: {file.path} was changed while the run started; start again"
            )


def _with_paths(recipe: Recipe, paths: Mapping[str, str]) -> Recipe:
    if not paths:
        return recipe
    tables = dict(recipe.embedding.tables)
    for name in _id_files(recipe):
        ids = tables[name].ids.model_copy(update={"path": paths[name]})
        tables[name] = tables[name].model_copy(update={"ids": ids})
    embedding = recipe.embedding.model_copy(update={"tables": tables})
    numbers = tuple(_number_with_paths(each, paths) for each in recipe.features.numbers)
    changes = {"numbers": numbers, "statistics": paths.get(STATISTICS, recipe.features.statistics)}
    features = recipe.features.model_copy(update=changes)
    return recipe.model_copy(update={"embedding": embedding, "features": features})


def _number_with_paths(number: NumberFeature, paths: Mapping[str, str]) -> NumberFeature:
    if number.similarity is None:
        return number
    where = f"features.numbers.{number.name}.similarity"
    sides = {
        side: each.model_copy(update={"vectors": paths[f"{where}.{side}.vectors"]})
        for side, each in number.sides.items()
    }
    return number.model_copy(update={"similarity": number.similarity.model_copy(update=sides)})


def _unreadable(file: NamedFile, error: Exception) -> UserError:
    return UserError(
        f"{file.where}: {file.path} cannot be read ({str(error).splitlines()[0]}); put the file back "
        "or correct the path"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
