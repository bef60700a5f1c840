"""Filling sets of tables with vectors from files at the start of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from prismrec.config import Recipe, UserError, nearest
from prismrec.config.embedding import Pretrained
from prismrec.data.vectors import VectorFiles
from prismrec.embeddings.imported import Fit, imported_rows
from prismrec.embeddings.row_ids import RowIds, TableIds
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.train.matches import Match, Matches

Wanted = tuple[str, Pretrained]
"""A table, and what one of its sets is filled with."""


def wanted_vectors(recipe: Recipe) -> list[Wanted]:
    """What a recipe fills from files, in its own order."""
    return [(name, each) for name, o in recipe.embedding.tables.items() for each in o.pretrained]


def check_pretrained(recipe: Recipe, spec: EmbeddingSpec, ids: TableIds) -> None:
    """Refuse what can be known to be wrong before a process starts.

    Raises:
        UserError: there is no such set, the ids of the table share rows or get theirs later, a file
            is missing, or its columns are not those of such vectors.
    """
    for table, wanted in wanted_vectors(recipe):
        _row_ids(ids, table)
        _files(spec, table, wanted)


def fill_pretrained(
    recipe: Recipe, spec: EmbeddingSpec, ids: TableIds, shards: Sequence[LocalShard]
) -> Iterator[Match]:
    """Fill this rank's blocks from the files; each rank reads what its rows need.

    Args:
        recipe: names the files.
        spec: the sets and tables.
        ids: what the rows stand for.
        shards: this rank's blocks.

    Yields:
        One for each file, in which `matched` counts the rows that this rank has and no lower one.

    Raises:
        UserError: see `check_pretrained` and `imported_rows`.
    """
    for table, wanted in wanted_vectors(recipe):
        files, row_ids = _files(spec, table, wanted), _row_ids(ids, table)
        key = f"{table}/{wanted.set}"
        here = [each for each in shards if each.key == key and each.weight.numel()]
        matched = _fill(files, row_ids, here, wanted.scale) if here else 0
        yield Match("table", key, wanted.path, matched, row_ids.num_rows, files.num_rows)


def describe_pretrained(matches: Sequence[Match]) -> Matches:
    """The report, from matches with the rows of all ranks."""
    noted = []
    for match in matches:
        left = match.there - match.matched
        note = f"{left:,} vectors of the file have no row" if left else ""
        noted.append(
            Match("table", match.name, match.source, match.matched, match.here, match.there, note)
        )
    return Matches("pretrained", "vectors from files", tuple(noted))


def _fill(files: VectorFiles, row_ids: RowIds, shards: Sequence[LocalShard], scale: float) -> int:
    """Write the vectors into the blocks of one table and set; the rows that count on this rank."""
    span = range(
        min(each.row for each in shards), max(each.row + each.weight.shape[0] for each in shards)
    )
    largest = torch.finfo(shards[0].weight.dtype).max
    matched = 0
    for rows, vectors in imported_rows(files, row_ids, span, Fit(scale, largest)):
        places, values = torch.from_numpy(rows), torch.from_numpy(vectors)
        for shard in shards:
            num_rows, cols = shard.weight.shape
            inside = (places >= shard.row) & (places < shard.row + num_rows)
            weight = shard.weight
            part = values[inside, shard.col : shard.col + cols].to(weight.device, weight.dtype)
            with torch.no_grad():
                weight.index_copy_(0, (places[inside] - shard.row).to(weight.device), part)
            if shard.col == 0 and not shard.is_replica:
                matched += int(inside.sum())
    return matched


def _files(spec: EmbeddingSpec, table: str, wanted: Pretrained) -> VectorFiles:
    sets = {each.name: each for t in spec.tables if t.name == table for each in spec.sets_of(t)}
    if wanted.set not in sets:
        raise UserError(
            f"embedding.tables.{table}.pretrained: the table has no set '{wanted.set}'; "
            f"{nearest(wanted.set, sets)}"
        )
    return VectorFiles(wanted.path, "id", sets[wanted.set].dim, f"set '{wanted.set}'")


def _row_ids(ids: TableIds, table: str) -> RowIds:
    row_ids = ids.row_ids(table)
    if row_ids is None:
        raise UserError(
            f"embedding.tables.{table}.pretrained: ids of kind '{ids.kind(table)}' have no rows of "
            "their own that could be filled; use ids = 'direct' or 'vocabulary'"
        )
    return row_ids
