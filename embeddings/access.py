"""Reading and writing the tables of a sharded model where they lie, without gathering them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.optimizers import PLAIN_STATE_NAMES, STATE_NAMES
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard

_INIT_ROWS = 8192

Block = tuple[int, int, Tensor]
"""First row, first column and view of a block of a physical table on this rank."""


def local_shards(
    model: DistributedModelParallel,
    spec: EmbeddingSpec,
    rank: int,
    plain_states: Mapping[Tensor, Mapping[str, Any]],
) -> list[LocalShard]:
    """The blocks of every `table/set` on this rank, as views that can be read and written.

    Args:
        model: the sharded model.
        spec: what its tables are.
        rank: this rank; replicas of data_parallel tables belong to rank 0.
        plain_states: state of the plain optimizer of data_parallel tables, by parameter.
    """
    weights = {_table_name(key): value for key, value in model.state_dict().items()}
    parameters = {_table_name(key): value for key, value in model.named_parameters()}
    states = _fused_states(model)
    shards = []
    for physical in physical_tables(spec):
        weight = weights[physical.name]
        if hasattr(weight, "local_shards"):
            names = STATE_NAMES[physical.form.optimizer.name]
            found = {
                ours: _blocks(states[physical.name][theirs])
                for theirs, ours in names.items()
                if theirs in states.get(physical.name, {})
            }
            is_replica = False
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
    """Fill the weights with normal numbers that depend on seed, table, set, row and column only.

    Any layout, plan or world size starts from the same weights. The unknown row starts at zero, so
    that an id never seen in training adds nothing.
    """
    deviations = {each.name: each.init_std for each in spec.sets}
    for shard in shards:
        deviation = deviations[shard.set_name]
        rows = shard.weight.shape[0]
        stop = shard.row + rows
        columns = slice(shard.col, shard.col + shard.weight.shape[1])
        shard.weight.zero_()
        if deviation == 0 or not rows:
            continue
        for block in range(shard.row // _INIT_ROWS, -(-stop // _INIT_ROWS)):
            first = block * _INIT_ROWS
            low, high = max(shard.row, first), min(stop, first + _INIT_ROWS, shard.num_rows - 1)
            if low < high:
                numbers = _normal(spec.seed, shard, block)[low - first : high - first, columns]
                shard.weight[low - shard.row : high - shard.row] = numbers * deviation


def _normal(seed: int, shard: LocalShard, block: int) -> Tensor:
    """Standard normal numbers for one block of rows of a whole set."""
    text = f"{seed}/{shard.key}/{block}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(number)
    rows = min(_INIT_ROWS, shard.num_rows)
    return torch.randn(rows, shard.num_cols, generator=generator)


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
    """Blocks of a ShardedTensor on this rank, or the whole of a plain tensor."""
    if not hasattr(tensor, "local_shards"):
        return [(0, 0, tensor.detach())]
    blocks = []
    for shard in tensor.local_shards():
        offsets = [*shard.metadata.shard_offsets, 0]
        blocks.append((offsets[0], offsets[1], shard.tensor.detach()))
    return blocks


def _fused_states(model: DistributedModelParallel) -> dict[str, dict[str, Any]]:
    """Sharded state tensors of the fused optimizer by physical table and FBGEMM name."""
    by_table: dict[str, dict[str, Any]] = {}
    for key, states in model.fused_optimizer.state_dict()["state"].items():
        table = _table_name(key)
        by_table[table] = {name.rpartition(".")[2]: value for name, value in states.items()}
    return by_table


def _table_name(key: str) -> str:
    """Physical table of a key such as `module.tables.embedding_bags.NAME.weight`, else the key."""
    _, found, rest = key.partition("embedding_bags.")
    return rest.removesuffix(".weight") if found else key
