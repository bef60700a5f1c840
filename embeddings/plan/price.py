"""What a way to place a table costs: time by TorchRec's estimator, memory by it and by our states.

One shard stands for all alike: a table has a price for each kind, kernel and width of a strip, not
for each of its shards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.planner.utils import sharder_name
from torchrec.distributed.types import CacheParams, ModuleSharder
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from prismrec.embeddings.collection import PhysicalTable
from prismrec.embeddings.communication import make_codecs
from prismrec.embeddings.managed.id_map import BYTES_PER_ROW
from prismrec.embeddings.memory import block_bytes
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.sharder import Sharder, UnpooledSharder, torchrec_name

Progress = Callable[[int, int], None]
"""Told how many steps are done and how many there are."""

_BATCH = 1000
_TYPES = {"fp32": torch.float32, "fp16": torch.float16}
DENSE = "dense"
"""Kernel of data_parallel tables."""


class Piece(NamedTuple):
    """What each rank that holds a strip of a table, or its part of the rows, spends on it.

    Args:
        ms: milliseconds of a step.
        device: bytes on the device; 0 on CPU.
        host: bytes of host memory, the copy that a checkpoint takes included.
        buffers: bytes among these of ids, outputs, caches, gradients and maps.
    """

    ms: float
    device: int
    host: int
    buffers: int


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut a table, without the ranks.

    Args:
        kind: one of `expand.KINDS`.
        kernel: of the tables' kernels, or `dense`.
        widths: of the strips from left to right.
    """

    kind: str
    kernel: str
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A cut with its price.

    Args:
        cut: the way.
        pieces: one for each strip.
        ranks: number of ranks that hold each strip.
    """

    cut: Cut
    pieces: tuple[Piece, ...]
    ranks: int

    @property
    def work(self) -> float:
        """Milliseconds over all ranks."""
        return self.ranks * sum(piece.ms for piece in self.pieces)

    @property
    def slowest(self) -> float:
        """Milliseconds of its most expensive strip on one rank."""
        return max(piece.ms for piece in self.pieces)


class _Key(NamedTuple):
    """What the price of a piece depends on."""

    kind: str
    kernel: str
    optimizer: str
    data_type: str
    lengths: tuple[float, ...]
    table: tuple[int, int]
    block: tuple[int, int]
    bytes_per_row: int
    is_pooled: bool


def ranks_per_strip(kind: str, placement: Placement) -> int:
    """Number of ranks that hold a strip of a table of some kind."""
    if kind in ("data_parallel", "row_wise"):
        return placement.world_size
    return placement.local_world_size if kind in ("table_row_wise", "grid") else 1


def price(
    cuts: dict[str, list[Cut]],
    tables: dict[str, PhysicalTable],
    spec: EmbeddingSpec,
    placement: Placement,
    progress: Progress | None = None,
) -> dict[str, list[Option]]:
    """The price of every cut of every table.

    Args:
        cuts: ways by physical name.
        tables: the physical tables by name.
        spec: what the tables are.
        placement: ranks, memory and batch.
        progress: told how many prices are known.
    """
    wanted = {
        name: [[_key(tables[name], cut, width, placement) for width in cut.widths] for cut in ways]
        for name, ways in cuts.items()
    }
    keys = dict.fromkeys(key for ways in wanted.values() for way in ways for key in way)
    known = _estimate(list(keys), spec, placement, progress)
    return {
        name: [
            Option(cut, tuple(known[key] for key in way), ranks_per_strip(cut.kind, placement))
            for cut, way in zip(cuts[name], ways, strict=True)
        ]
        for name, ways in wanted.items()
    }


def _key(physical: PhysicalTable, cut: Cut, width: int, placement: Placement) -> _Key:
    rows = physical.table.rows
    parts = 1 if cut.kind == "data_parallel" else ranks_per_strip(cut.kind, placement)
    return _Key(
        kind=cut.kind,
        kernel=cut.kernel,
        optimizer=physical.form.optimizer.name,
        data_type=physical.form.data_type,
        lengths=_lengths(physical),
        table=(rows, physical.width),
        block=(-(-rows // parts), width),
        bytes_per_row=placement.bytes_per_row + (BYTES_PER_ROW if physical.table.is_managed else 0),
        is_pooled=physical.is_pooled,
    )


def _lengths(physical: PhysicalTable) -> tuple[float, ...]:
    """Rows of the table that one row of the data looks up by each feature."""
    table, most = physical.table, {each.key: each.most for each in physical.table.behaviours}
    wanted = [1.0] * len(physical.features) + [float(most[key]) for key in physical.behaviours]
    if table.ids_per_row is not None:
        whole = len(table.features) + sum(most.values())
        wanted = [table.ids_per_row * each / whole for each in wanted]
    return tuple(each * table.rows_per_id for each in wanted)


def _estimate(
    keys: list[_Key], spec: EmbeddingSpec, placement: Placement, progress: Progress | None
) -> dict[_Key, Piece]:
    topology = placement.topology()
    codecs = make_codecs(spec.communication, placement.batch_size)
    sharders: dict[str, ModuleSharder[Any]] = {
        sharder_name(EmbeddingBagCollection): Sharder(codecs),
        sharder_name(EmbeddingCollection): UnpooledSharder(),
    }
    about = _about(sharders)
    speed, storage = EmbeddingPerfEstimator(topology), EmbeddingStorageEstimator(topology)
    meta = torch.device("meta")
    pooling = EmbeddingBagCollection(tables=[], is_weighted=spec.is_weighted, device=meta)
    collections = {True: pooling, False: EmbeddingCollection(tables=[], device=meta)}
    pieces: dict[_Key, Piece] = {}
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        options = [_option(key, collections[key.is_pooled], spec, placement) for key in batch]
        speed.estimate(options, about)
        storage.estimate(options, about)
        for key, option in zip(batch, options, strict=True):
            pieces[key] = _piece(key, option.shards[0], placement)
        if progress:
            progress(len(pieces), len(keys))
    return pieces


def _about(sharders: dict[str, ModuleSharder[Any]]) -> Any:
    """What this TorchRec's estimators take of the sharders: before 1.8 it is the sharders themselves."""
    if "sharder_data_map" not in inspect.signature(EmbeddingStorageEstimator.estimate).parameters:
        return sharders
    from torchrec.distributed.planner.utils import build_sharder_data_map

    return build_sharder_data_map(sharders)


def _option(
    key: _Key, collection: nn.Module, spec: EmbeddingSpec, placement: Placement
) -> ShardingOption:
    kind = torchrec_name(key.kind)
    cached = key.kernel == "fused_uvm_caching"
    return ShardingOption(
        name="",
        tensor=_meta(key),
        module=("", collection),
        input_lengths=list(key.lengths),
        batch_size=placement.batch_size,
        sharding_type=kind,
        partition_by=get_partition_by_type(kind),
        compute_kernel=key.kernel,
        shards=[Shard(size=list(key.block), offset=[0, 0])],
        cache_params=CacheParams(load_factor=spec.cache_load_factor) if cached else None,
        is_pooled=key.is_pooled,
    )


def _meta(key: _Key) -> Tensor:
    return torch.empty(key.table, dtype=_TYPES[key.data_type], device="meta")


def _piece(key: _Key, shard: Shard, placement: Placement) -> Piece:
    """TorchRec's estimate of a shard, and what the estimate leaves out.

    That is the optimizer's state, the gradient of a data_parallel table, what else is kept for every
    row, and the copy of all but the gradient in host memory that a checkpoint takes.
    """
    assert shard.perf is not None
    assert shard.storage is not None
    need = block_bytes(key.optimizer, key.data_type, *key.block)  # type: ignore[arg-type]
    by_row = key.bytes_per_row * key.block[0]
    beside = need.state + by_row + (need.weights if key.kind == "data_parallel" else 0)
    on_device = placement.device == "cuda" and "uvm" not in key.kernel
    return Piece(
        ms=shard.perf.total,
        device=shard.storage.hbm + (beside if on_device else 0),
        host=shard.storage.ddr + need.total + by_row + (0 if on_device else beside),
        buffers=shard.storage.hbm + shard.storage.ddr - need.weights + beside - need.state,
    )
