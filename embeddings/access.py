"""Reading and writing the tables of a sharded model where they lie, without gathering them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedTensor, ShardingEnv2D

from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.optimizers import PLAIN_STATE_NAMES, STATE_NAMES
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

_INIT_ROWS = 8192
_TABLE = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.weight$")
"""Ends in the name of a table in a collection that pools, or in one that does not."""

Block = tuple[int, int, Tensor]
"""First row, first column and view of a block of a physical table on this rank."""


def local_shards(
    model: DistributedModelParallel,
    spec: EmbeddingSpec,
    rank: int,
    plain_states: Mapping[Tensor, Mapping[str, Any]],
) -> list[LocalShard]:
    """The blocks of every `table/set` on this rank, as views that can be read and written.

    Whoever writes calls `drop_cached_rows` afterwards.

    Args:
        model: the sharded model; where groups of ranks hold copies of the tables, those of the
            first group are the tables and the others' are replicas.
        spec: what its tables are.
        rank: this rank; replicas of data_parallel tables belong to rank 0.
        plain_states: state of the plain optimizer of data_parallel tables, by parameter.
    """
    weights = {table_name(key): value for key, value in model.state_dict().items()}
    parameters = {table_name(key): value for key, value in model.named_parameters()}
    states = _fused_states(model)
    is_copy = _is_copy(model)
    shards = []
    for physical in physical_tables(spec):
        weight = weights[physical.name]
        if isinstance(weight, (ShardedTensor, DTensor)):
            names = STATE_NAMES[physical.form.optimizer.name]
            found = {
                ours: _blocks(states[physical.name][theirs])
                for theirs, ours in names.items()
                if theirs in states.get(physical.name, {})
            }
            is_replica = is_copy
        else:
            plain = plain_states.get(parameters[physical.name], {})
            names = PLAIN_STATE_NAMES.get(physical.form.optimizer.name, {})
            found = {ours: [(0, 0, plain[key])] for key, ours in names.items() if key in plain}
            is_replica = rank != 0
        for index, block in enumerate(_blocks(weight)):
            of_block = {name: blocks[index][2] for name, blocks in found.items()}
            shards += _slice(physical, spec, block, of_block, is_replica)
    return shards


@torch.no_grad()
def initialize(shards: list[LocalShard], spec: EmbeddingSpec) -> None:
    """Fill the weights with numbers that depend on seed, table, set, row and column only.

    Any layout, plan or world size starts from the same weights: normal numbers, or those of `Start`
    in a table of numbers. Rows of unknown ids start at zero, see `TableSpec`, and so do those of
    managed tables, which no id has yet, and all rows of a set whose deviation is 0.
    """
    deviations = {each.name: each.init_std for each in spec.sets}
    tables = {each.name: each for each in spec.tables}
    for shard in shards:
        table, deviation = tables[shard.table], deviations[shard.set_name]
        shard.weight.zero_()
        if deviation == 0 or table.is_managed:
            continue
        if table.starts is None:
            _fill(shard, spec.seed, (0, table.known_rows), deviation)
        for start in table.starts or ():
            _fill(shard, spec.seed, (start.first, start.stop), start.std, is_even=True)


def _fill(
    shard: LocalShard, seed: int, span: tuple[int, int], deviation: float, *, is_even: bool = False
) -> None:
    """Draw the rows of a block that lie in a span of rows of the table.

    Args:
        shard: the block.
        seed: of all weights.
        span: first row, and the row after the last.
        deviation: standard deviation of the numbers.
        is_even: drawn evenly around 0 instead of normally.
    """
    first, stop = max(shard.row, span[0]), min(shard.row + shard.weight.shape[0], span[1])
    columns = slice(shard.col, shard.col + shard.weight.shape[1])
    for block in range(first // _INIT_ROWS, -(-stop // _INIT_ROWS)):
        begin = block * _INIT_ROWS
        low, high = max(first, begin), min(stop, begin + _INIT_ROWS)
        if low < high:
            numbers = _drawn(seed, shard, block, is_even)[low - begin : high - begin, columns]
            shard.weight[low - shard.row : high - shard.row] = numbers * deviation


def drop_cached_rows(model: nn.Module) -> None:
    """Let the kernels read written tables anew instead of rows that their caches hold.

    Tables in host memory have caches on the device; others are left as they are.
    """
    for lookup in lookups(model):
        lookup.purge()


def set_steps_done(model: nn.Module, steps: int) -> None:
    """Tell the fused kernels how many steps they have made, which Adam and LAMB correct their bias by.

    They count their forward passes, evaluations too, from the start of the process.
    """
    for lookup in lookups(model):
        for kernel in lookup.modules():
            if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
                kernel.iter.fill_(steps)
                kernel.iter_cpu.fill_(steps)


def _drawn(seed: int, shard: LocalShard, block: int, is_even: bool) -> Tensor:
    """Numbers of mean 0 and deviation 1 for one block of rows of a whole set."""
    text = f"{seed}/{shard.key}/{block}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(number)
    shape = min(_INIT_ROWS, shard.num_rows), shard.num_cols
    if is_even:
        return (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)
    return torch.randn(shape, generator=generator)


def _slice(
    physical: PhysicalTable,
    spec: EmbeddingSpec,
    block: Block,
    states: dict[str, Tensor],
    is_replica: bool,
) -> list[LocalShard]:
    """One block of a physical table as a block of each set that it touches."""
    row, col, weight = block
    stop = col + weight.shape[1]
    widths = {each.name: each.dim for each in spec.sets}
    shards = []
    for set_name, (set_start, set_stop) in physical.slices.items():
        low, high = max(col, set_start), min(stop, set_stop)
        if low >= high:
            continue
        columns = slice(low - col, high - col)
        shards.append(
            LocalShard(
                table=physical.table.name,
                set_name=set_name,
                num_rows=physical.table.rows,
                num_cols=widths[set_name],
                row=row,
                col=low - set_start,
                weight=weight[:, columns],
                states={k: v if v.dim() == 1 else v[:, columns] for k, v in states.items()},
                is_replica=is_replica,
            )
        )
    return shards


def _blocks(tensor: Any) -> list[Block]:
    """Blocks of a sharded tensor on this rank, or the whole of a plain one.

    The blocks of a row-wise state come in the order of the weight's; TorchRec has no columns for
    them.
    """
    if isinstance(tensor, ShardedTensor):
        found = [(each.metadata.shard_offsets, each.tensor) for each in tensor.local_shards()]
    elif isinstance(tensor, DTensor):  # what TorchRec gives where there are copies
        local: Any = tensor.to_local()
        # Without a shard here there is an offset all the same.
        found = list(zip(local.local_offsets(), local.local_shards(), strict=False))
    else:
        found = [((0, 0), tensor)]
    return [(offsets[0], (*offsets, 0)[1], each.detach()) for offsets, each in found]


def _is_copy(model: DistributedModelParallel) -> bool:
    """Whether the sharded tables on this rank are copies of those in another group of ranks."""
    env = model._env
    return isinstance(env, ShardingEnv2D) and dist.get_rank(env.replica_pg) > 0


def lookups(model: nn.Module) -> Iterator[Any]:
    """The modules that hold the blocks of the tables on this rank."""
    for module in model.modules():
        if isinstance(module, (ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)):
            for lookup in module._lookups:
                yield getattr(lookup, "module", lookup)  # data_parallel ones are wrapped


def _fused_states(model: DistributedModelParallel) -> dict[str, dict[str, Any]]:
    """Sharded state tensors of the fused optimizer by physical table and FBGEMM name."""
    by_table: dict[str, dict[str, Any]] = {}
    for key, states in model.fused_optimizer.state_dict()["state"].items():
        table = table_name(key)
        by_table[table] = {name.rpartition(".")[2]: value for name, value in states.items()}
    return by_table


def table_name(key: str) -> str:
    """Physical table of a key such as `module.tables.embedding_bags.NAME.weight`, else the key."""
    found = _TABLE.search(key)
    return found[1] if found else key
