"""From a chosen place to what TorchRec takes: every shard of every table with its rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from torch import nn
from torchrec.distributed.sharding_plan import placement as place_of
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from prismrec.embeddings.access import table_name
from prismrec.embeddings.sharder import torchrec_name

HOST_KINDS = ("table_row_wise", "table_column_wise", "grid")
"""Those that keep a table, or each strip of its columns, on the ranks of one host."""

_SHARDED = (
    EmbeddingBagCollection,
    EmbeddingCollection,
    ManagedCollisionEmbeddingBagCollection,
)


class Strip(NamedTuple):
    """A range of a table's columns and the ranks that hold it.

    Args:
        col: first column.
        cols: number of columns.
        rank: first rank.
        ranks: number of ranks; the rows are cut evenly over them, unless each holds them all.
    """

    col: int
    cols: int
    rank: int
    ranks: int


class Block(NamedTuple):
    """A shard: the rank that holds it, its first row and column, its rows and columns."""

    rank: int
    row: int
    col: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class TablePlace:
    """Where one physical table goes.

    Args:
        name: physical name.
        kind: one of `KINDS`.
        kernel: `dense` for data_parallel tables, else `fused`, `fused_uvm` or `fused_uvm_caching`.
        rows: rows of the table.
        strips: its columns from left to right.
        cache_load_factor: share of the rows that a `fused_uvm_caching` table's cache holds.
    """

    name: str
    kind: str
    kernel: str
    rows: int
    strips: tuple[Strip, ...]
    cache_load_factor: float | None = None

    def blocks(self) -> Iterator[Block]:
        """Every shard, in the order in which TorchRec wants them: by strip, then by rank."""
        for strip in self.strips:
            for index, (row, rows) in enumerate(self._rows(strip.ranks)):
                yield Block(strip.rank + index, row, strip.col, rows, strip.cols)

    def _rows(self, ranks: int) -> list[tuple[int, int]]:
        if self.kind == "data_parallel":
            return [(0, self.rows)] * ranks
        return even_rows(self.rows, ranks)


def even_rows(rows: int, parts: int) -> list[tuple[int, int]]:
    """First row and number of rows of each part, as TorchRec's kernels cut them.

    >>> even_rows(10, 4), even_rows(5, 4)
    ([(0, 3), (3, 3), (6, 3), (9, 1)], [(0, 2), (2, 2), (4, 1), (5, 0)])
    """
    size = -(-rows // parts)
    starts = [min(rows, part * size) for part in range(parts + 1)]
    return [(start, stop - start) for start, stop in pairwise(starts)]


def even_widths(width: int, parts: int) -> tuple[int, ...]:
    """Widths of `parts` pieces of a row, all multiples of 4 and as equal as these can be.

    >>> even_widths(64, 4), even_widths(12, 2)
    ((16, 16, 16, 16), (8, 4))

    Args:
        width: a multiple of 4.
        parts: at most `width / 4`.
    """
    base, more = divmod(width // 4, parts)
    return tuple(4 * (base + (part < more)) for part in range(parts))


def strips(widths: Sequence[int], ranks: Sequence[tuple[int, int]]) -> tuple[Strip, ...]:
    """Strips of the given widths from left to right, each on its (first rank, number of ranks)."""
    found, col = [], 0
    for width, (rank, count) in zip(widths, ranks, strict=True):
        found.append(Strip(col, width, rank, count))
        col += width
    return tuple(found)


def parameter_sharding(place: TablePlace, device: str, local_world_size: int) -> ParameterSharding:
    """One table's place as TorchRec takes it.

    Args:
        place: where the table goes.
        device: "cpu" or "cuda".
        local_world_size: ranks per host.
    """
    # Of a table's blocks on a rank TorchRec takes the first one's width for that of all of them, and
    # then reads past their end if it is not the narrowest.
    narrow_first = tuple(sorted(place.strips, key=lambda strip: strip.cols))
    blocks = list(replace(place, strips=narrow_first).blocks())
    cache = place.cache_load_factor
    return ParameterSharding(
        sharding_type=torchrec_name(place.kind),
        compute_kernel=place.kernel,
        ranks=[block.rank for block in blocks],
        sharding_spec=None
        if place.kind == "data_parallel"
        else EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[block.row, block.col],
                    shard_sizes=[block.rows, block.cols],
                    placement=place_of(device, block.rank, local_world_size),
                )
                for block in blocks
            ]
        ),
        cache_params=None if cache is None else CacheParams(load_factor=cache),
    )


def sharding_plan(
    model: nn.Module, places: Iterable[TablePlace], device: str, local_world_size: int
) -> ShardingPlan:
    """The plan of all of a model's tables.

    Args:
        model: module that holds the unsharded collections.
        places: one for every physical table in them.
        device: "cpu" or "cuda".
        local_world_size: ranks per host.
    """
    by_name = {place.name: place for place in places}
    modules: dict[str, Any] = {}
    for path, module in _collections(model):
        found = EmbeddingModuleShardingPlan()
        for key, _ in module.named_parameters():
            name = table_name(key)
            if name in by_name:
                found[name] = parameter_sharding(by_name[name], device, local_world_size)
        modules[path] = found
    return ShardingPlan(modules)


def _collections(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that TorchRec shards, each as a whole, with their paths."""
    if isinstance(module, _SHARDED):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _collections(child, f"{path}.{name}" if path else name)
