"""Semantic ids as rows: files of codes, the grams of an id, and the rows that grams have.

A file of codes has columns `id` (int64) and `code_0`, `code_1`, ... (integers), and in its metadata how
many codes every level has. Other columns are carried along. A **gram** is the codes of some levels that
follow each other; the grams of the same levels have a segment of the table's rows, behind those before.

Notation: n ids of the file, L levels, G grams of an id.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.config.ids import SemanticIds
from prismrec.data.encode.encoders import Mask, TableRows, fold, with_unknown
from prismrec.data.encode.ids import Ints, name_seed
from prismrec.data.source import resolve_filesystem

FACTS = b"prismrec"
"""Key of the file's metadata under which JSON says what the codes are: `sizes`, the codes of every
level, and `codebooks`, a digest of what gave them."""
CODE = "code_"
"""How the names of the columns of codes begin."""

Codes = NDArray[np.int32]
_WRITE = "write it by `prismrec data semantic-ids`"


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What a file of codes says of itself.

    Args:
        sizes: (L,) codes of every level.
        codebooks: digest of what gave the codes; equal where equal codes mean the same.
    """

    sizes: tuple[int, ...]
    codebooks: str


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of the grams of some levels.

    Args:
        levels: the levels, which follow each other.
        first: the segment's first row.
        rows: its rows.
        is_hashed: whether grams are folded into them.
    """

    levels: range
    first: int
    rows: int
    is_hashed: bool


@dataclass(frozen=True, slots=True)
class SemanticEncoder:
    """Ids look up the rows of their grams; an id that the file does not have is unknown.

    Args:
        rows: the table's.
        segments: of the known rows, G of them.
        ids: (n,) the ids of the file in rising order.
        places: (n, G) the rows of each of them, int32 where that is enough.
        digest: SHA-256 of the file.
        meaning: two tables of one meaning and the same segments give a gram the same row.
    """

    rows: TableRows
    segments: tuple[Segment, ...]
    ids: Ints
    places: Ints | Codes
    digest: str
    meaning: str

    @property
    def rows_per_id(self) -> int:
        """Number of grams."""
        return len(self.segments)

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `Encoder`."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        unknown = self.ids[at] != ids
        found = list(np.moveaxis(self.places[at], -1, 0).astype(np.int64))
        return with_unknown(found, ids, unknown, self.rows)


def gram_levels(options: SemanticIds, num_levels: int) -> list[range]:
    """The levels of each gram of an id.

    Args:
        options: form, n and levels used.
        num_levels: L of the file.

    >>> gram_levels(SemanticIds(kind="semantic", path="", form="prefix"), 3)
    [range(0, 1), range(0, 2), range(0, 3)]
    """
    used = num_levels if options.levels is None else options.levels
    if options.form == "level":
        return [range(level, level + 1) for level in range(used)]
    if options.form == "prefix":
        return [range(level + 1) for level in range(used)]
    length = options.gram_length
    return [range(level, level + length) for level in range(used - length + 1)]


def packed(codes: Codes, levels: range, sizes: Sequence[int]) -> Ints:
    """(n,) one number for the codes of some levels, the last level counting least.

    Args:
        codes: (n, L).
        levels: the levels, in order.
        sizes: codes of every level; the product of those used is below 2^63.

    >>> packed(np.array([[0, 2, 3], [3, 3, 1]], np.int32), range(3), (4, 4, 4)).tolist()
    [11, 61]
    """
    number = np.zeros(len(codes), np.int64)
    for level in levels:
        number = number * sizes[level] + codes[:, level]
    return number


def semantic_segments(options: SemanticIds, table: str) -> tuple[Segment, ...]:
    """The rows of a table's grams; the ids of the file are read only where `numbering` is `seen`.

    Args:
        options: of the table's ids.
        table: its name.

    Raises:
        UserError: see `semantic_encoder`.
    """
    where = f"embedding.tables.{table}.ids"
    if options.numbering == "seen":
        _, codes, facts = _read(_content(options, where), options, where)
        return _segments(options, facts, codes, where)
    try:
        system, path = resolve_filesystem(options.path)
        schema = pq.read_schema(path, filesystem=system)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(options, where, error) from None
    return _segments(options, code_facts(schema, options.path, f"{where}.path"), None, where)


def semantic_encoder(options: SemanticIds, rows: TableRows, table: str) -> SemanticEncoder:
    """The encoder of a file of codes.

    Args:
        options: file and grams.
        rows: of the table; the known ones are those of `semantic_segments`.
        table: its name, which seeds the hashes.

    Raises:
        UserError: the file cannot be read or was changed since `rows` was made, has no codes or
            fewer levels than are asked for, names an id twice or a code that there is not.
    """
    where = f"embedding.tables.{table}.ids"
    content = _content(options, where)
    ids, codes, facts = _read(content, options, where)
    segments = _segments(options, facts, codes if options.numbering == "seen" else None, where)
    if sum(each.rows for each in segments) != rows.known:
        raise UserError(f"{where}.path: {options.path} was changed while it was read; start again")
    type_ = np.int32 if rows.total < 2**31 else np.int64
    places = np.empty((len(ids), len(segments)), type_)
    for gram, segment in enumerate(segments):
        places[:, gram] = _places(segment, codes, facts, table)
    digest = hashlib.sha256(content).hexdigest()
    seen = digest if options.numbering == "seen" else ""
    seed = table if any(each.is_hashed for each in segments) else ""
    meaning = f"{facts.codebooks}/{facts.sizes}/{seen}/{seed}"
    return SemanticEncoder(rows, segments, ids, places, digest, meaning)


def code_facts(schema: pa.Schema, path: str, where: str) -> CodeFacts:
    """What the schema of a file of codes says, held against its columns.

    Args:
        schema: of the file.
        path: of the file, for errors.
        where: what names the file, for errors.

    Raises:
        UserError: the file is no file of codes.
    """
    try:
        facts: dict[str, Any] = json.loads((schema.metadata or {})[FACTS])
        sizes, codebooks = tuple(facts["sizes"]), str(facts["codebooks"])
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"{where}: {path} does not say how many codes its levels have; {_WRITE}"
        ) from None
    names = ["id", *(f"{CODE}{level}" for level in range(len(sizes)))]
    for name in names:
        index = schema.get_field_index(name)
        if index < 0 or not pa.types.is_integer(schema.field(index).type):
            raise UserError(f"{where}: {path} has no column '{name}' of integers; {_WRITE}")
    if len(names) == 1:
        raise UserError(f"{where}: {path} has codes of no level; {_WRITE}")
    return CodeFacts(sizes, codebooks)


def read_codes(table: pa.Table, facts: CodeFacts, path: str, where: str) -> tuple[Ints, Codes]:
    """Ids in rising order (n,), and their codes (n, L).

    Raises:
        UserError: there is no id, one is missing or there twice, or a code is none of its level.
    """
    names = ["id", *(f"{CODE}{level}" for level in range(len(facts.sizes)))]
    for name in names:
        if table.column(name).null_count:
            raise UserError(f"{where}: {path}: column '{name}' has nulls; leave these rows out")
    ids: Ints = table.column("id").to_numpy().astype(np.int64)
    if not len(ids):
        raise UserError(f"{where}: {path} has no row; {_WRITE}")
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    twice = np.flatnonzero(ids[1:] == ids[:-1])
    if len(twice):
        raise UserError(f"{where}: {path} has id {ids[twice[0]]} twice; keep one of the rows")
    columns = [table.column(name).to_numpy() for name in names[1:]]
    for level, (column, size) in enumerate(zip(columns, facts.sizes, strict=True)):
        least, most = int(column.min()), int(column.max())
        if least < 0 or most >= size:
            raise UserError(
                f"{where}: {path}: column '{CODE}{level}' holds {least if least < 0 else most}, but "
                f"its codes are 0 to {size - 1}; {_WRITE}"
            )
    return ids, np.stack(columns, axis=1).astype(np.int32)[order]


def _content(options: SemanticIds, where: str) -> pa.Buffer:
    try:
        system, path = resolve_filesystem(options.path)
        with system.open_input_file(path) as stream:
            return stream.read_buffer()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(options, where, error) from None


def _read(content: pa.Buffer, options: SemanticIds, where: str) -> tuple[Ints, Codes, CodeFacts]:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(options, where, error) from None
    facts = code_facts(table.schema, options.path, f"{where}.path")
    ids, codes = read_codes(table, facts, options.path, f"{where}.path")
    return ids, codes, facts


def _segments(
    options: SemanticIds, facts: CodeFacts, codes: Codes | None, where: str
) -> tuple[Segment, ...]:
    """One after the other; `codes` are those of the file where grams that it has are numbered."""
    num_levels = len(facts.sizes)
    needed = max(options.levels or 1, options.gram_length)
    if needed > num_levels:
        raise UserError(
            f"{where}: {needed} levels are asked for, but {options.path} has {num_levels}; lower "
            "levels or n, or write a file with more"
        )
    segments: list[Segment] = []
    first = 0
    for levels in gram_levels(options, num_levels):
        count = math.prod(facts.sizes[level] for level in levels)
        if count >= 2**63:
            raise UserError(
                f"{where}: {len(levels)} levels of {options.path} make {count} grams, which 64 bits "
                "cannot number; use fewer levels, or form = 'level'"
            )
        if codes is not None:
            count = len(np.unique(packed(codes, levels, facts.sizes)))
        most = count if options.max_rows is None else options.max_rows
        segments.append(Segment(levels, first, min(count, most), count > most))
        first += segments[-1].rows
    return tuple(segments)


def _places(segment: Segment, codes: Codes, facts: CodeFacts, table: str) -> Ints:
    """(n,) rows of the grams of all ids of the file in one segment."""
    grams = packed(codes, segment.levels, facts.sizes)
    if segment.is_hashed:
        seed = name_seed(f"{table}/{segment.levels.start}-{segment.levels.stop}")
        return segment.first + fold(grams, segment.rows, seed)
    if segment.rows < math.prod(facts.sizes[level] for level in segment.levels):
        grams = np.unique(grams, return_inverse=True)[1]
    return segment.first + grams


def _unreadable(options: SemanticIds, where: str, error: Exception) -> UserError:
    return UserError(
        f"{where}.path: {options.path} cannot be read ({str(error).splitlines()[0]}); {_WRITE} or "
        "correct the path"
    )
