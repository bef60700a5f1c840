"""Vocabularies: the Parquet files that list the ids of a table.

A file has columns `id` and `count` (int64), the most frequent id first; the id in line k has row k.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import Recipe, UserError
from prismrec.config.ids import VocabularyIds
from prismrec.data.encode.encoders import TableRows, VocabularyEncoder
from prismrec.data.encode.ids import Ints
from prismrec.data.source import resolve_filesystem

FIELDS = pa.schema([pa.field("id", pa.int64(), False), pa.field("count", pa.int64(), False)])
"""Columns of a vocabulary."""


def vocabulary_size(options: VocabularyIds, where: str) -> int:
    """Ids of a vocabulary that are frequent enough; only what that needs is read.

    Args:
        options: file and least count.
        where: the recipe key, for errors.

    Raises:
        UserError: see `read_vocabulary`.
    """
    columns = [] if options.min_count == 1 else ["count"]
    try:
        system, path = resolve_filesystem(options.path)
        with pq.ParquetFile(path, filesystem=system) as file:
            _check_fields(file.schema_arrow, options, where)
            if not columns:
                return _some(file.metadata.num_rows, options, where)
            counts = file.read(columns).column(0).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(options, where, error) from None
    return _some(int((counts >= options.min_count).sum()), options, where)


def read_vocabulary(options: VocabularyIds, rows: TableRows, where: str) -> VocabularyEncoder:
    """The encoder of a vocabulary.

    Args:
        options: file and least count.
        rows: of the table; the known ones are as `vocabulary_size` gives them.
        where: the recipe key, for errors.

    Raises:
        UserError: the file cannot be read, has other columns, is not sorted by count, names an id
            twice, holds no id that is frequent enough, or was changed since `rows` was made.
    """
    try:
        system, path = resolve_filesystem(options.path)
        with system.open_input_file(path) as stream:
            content = stream.read_buffer()
        table = pq.read_table(pa.BufferReader(content), schema=FIELDS)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(options, where, error) from None
    ids, counts = (table.column(name).to_numpy() for name in FIELDS.names)
    if (counts[1:] > counts[:-1]).any():
        raise UserError(
            f"{where}.path: {options.path} is not sorted by falling count; write it by "
            "`prismrec data vocabulary`"
        )
    ids = ids[: _some(int((counts >= options.min_count).sum()), options, where)]
    if len(ids) != rows.known:
        raise UserError(f"{where}.path: {options.path} was changed while it was read; start again")
    order = np.argsort(ids, kind="stable")
    known: Ints = ids[order]
    twice = np.flatnonzero(known[1:] == known[:-1])
    if len(twice):
        raise UserError(
            f"{where}.path: {options.path} lists id {known[twice[0]]} twice; write it by "
            "`prismrec data vocabulary`"
        )
    digest = hashlib.sha256(content).hexdigest()
    return VocabularyEncoder(rows, known, order, digest)


def vocabularies(recipe: Recipe) -> dict[str, VocabularyIds]:
    """The vocabularies that the features of a recipe use, by table, in the order of the features."""
    options = {
        feature.table_name: recipe.embedding.tables.get(feature.table_name)
        for feature in recipe.features.sparse
    }
    return {
        name: each.ids
        for name, each in options.items()
        if each is not None and isinstance(each.ids, VocabularyIds)
    }


def _some(count: int, options: VocabularyIds, where: str) -> int:
    if count == 0:
        raise UserError(
            f"{where}: {options.path} holds no id that was seen {options.min_count} times or more; "
            "lower min_count or write the file again"
        )
    return count


def _check_fields(schema: pa.Schema, options: VocabularyIds, where: str) -> None:
    for field in FIELDS:
        index = schema.get_field_index(field.name)
        if index < 0 or schema.field(index).type != field.type:
            raise UserError(
                f"{where}.path: {options.path} is no vocabulary, which has columns id and count of "
                "type int64; write it by `prismrec data vocabulary`"
            )


def _unreadable(options: VocabularyIds, where: str, error: Exception) -> UserError:
    return UserError(
        f"{where}.path: {options.path} cannot be read ({str(error).splitlines()[0]}); write it by "
        "`prismrec data vocabulary` or correct the path"
    )
