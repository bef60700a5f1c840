"""A copy in host memory of everything that training changes, taken between two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import DenseGroup
from prismrec.embeddings.managed.state import MapShard
from prismrec.embeddings.shards import LocalShard

WEIGHT = "weight"
TOUCHED = "touched"
"""Name of the logical tensor that says when a row was touched last; the sets of a row share it."""


@dataclass(frozen=True, slots=True)
class TensorBlock:
    """A block of the logical tensor `table/set/name`, copied.

    Args:
        key: `table/set`.
        name: "weight" or the name of an optimizer state.
        num_rows: rows of the whole table.
        num_cols: width of the whole set.
        row: first row of the block.
        col: first column of the block.
        cols: columns of the block, also if row-wise: those that its numbers stand for.
        values: (rows, cols), or (rows,) if row-wise; contiguous, in host memory. Blocks of sets
            that share row-wise state have the same tensor.
    """

    key: str
    name: str
    num_rows: int
    num_cols: int
    row: int
    col: int
    cols: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What this rank's part of a checkpoint is made of.

    Args:
        blocks: the copied blocks of its tables.
        dense: the copied dense tensors, by group and name.
        copies: files that rank 0 copies beside the tensors, by the name of the copy.
        maps: which ids have the rows of tables that give rows to ids as they come.
    """

    blocks: tuple[TensorBlock, ...]
    dense: dict[DenseGroup, dict[str, Tensor]]
    copies: Mapping[str, Path] = field(default_factory=dict)
    maps: tuple[MapShard, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Host memory that the copy takes until it is written."""
        tensors = {id(block.values): block.values for block in self.blocks}
        dense = [tensor for group in self.dense.values() for tensor in group.values()]
        for each in self.maps:
            dense += [*each.rows.values(), *each.newcomers.values()]
        return sum(each.numel() * each.element_size() for each in (*tensors.values(), *dense))


def capture(
    shards: Sequence[LocalShard],
    dense: Mapping[str, Tensor],
    dense_optimizer: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    maps: Sequence[MapShard] = (),
) -> Snapshot:
    """Copy this rank's state to host memory; training may go on as soon as this returns.

    Replicas and empty blocks are left out. Only rank 0 saves dense tensors, so the other ranks may
    give empty mappings and spare the copy.

    Args:
        shards: blocks of the tables on this rank.
        dense: parameters and buffers of the model by name.
        dense_optimizer: their optimizer state by `parameter/state`, scalars as 0-d tensors.
        ema: moving averages of parameters by name.
        maps: copies of this rank's maps of ids; they are kept as they are.

    Raises:
        ValueError: a shard does not lie inside its table, or a state has neither its weight's
            shape nor a number for each of its rows.
    """
    blocks = []
    row_wise: dict[tuple[int, int], Tensor] = {}
    for shard in shards:
        check_shard(shard)
        if shard.is_replica or not shard.weight.numel():
            continue
        touched = {} if shard.touched is None else {TOUCHED: shard.touched}
        for name, tensor in {**tensors_of(shard), **touched}.items():
            copy = row_wise.get(memory_of(tensor)) if tensor.ndim == 1 else None
            if copy is None:
                copy = _copy(tensor)
            if tensor.ndim == 1:
                row_wise[memory_of(tensor)] = copy
            blocks.append(
                TensorBlock(
                    key=shard.key,
                    name=name,
                    num_rows=shard.num_rows,
                    num_cols=shard.num_cols,
                    row=shard.row,
                    col=shard.col,
                    cols=shard.weight.shape[1],
                    values=copy,
                )
            )
    groups: dict[DenseGroup, Mapping[str, Tensor]] = {
        "dense": dense,
        "dense_optimizer": dense_optimizer,
        "ema": ema,
    }
    copies = {
        which: {name: _copy(tensor) for name, tensor in group.items()}
        for which, group in groups.items()
    }
    return Snapshot(tuple(blocks), copies, maps=tuple(maps))


def memory_of(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies: equal for row-wise state that sets share, as packed ones do."""
    return tensor.data_ptr(), tensor.numel()


def tensors_of(shard: LocalShard) -> dict[str, Tensor]:
    """The weight and the states of a shard by name."""
    return {WEIGHT: shard.weight, **shard.states}


def check_shard(shard: LocalShard) -> None:
    """Refuse a shard that has no place in the logical tensors of its table; an empty one has no say.

    Raises:
        ValueError: as `capture` says.
    """
    rows, cols = shard.weight.shape
    if not shard.weight.numel():
        return
    if not (0 <= shard.row <= shard.num_rows - rows and 0 <= shard.col <= shard.num_cols - cols):
        raise ValueError(
            f"shard of {shard.key} at row {shard.row}, column {shard.col} of shape ({rows}, "
            f"{cols}) does not lie in ({shard.num_rows}, {shard.num_cols})"
        )
    if WEIGHT in shard.states:
        raise ValueError(f"shard of {shard.key}: an optimizer state must not be called {WEIGHT}")
    for name, state in shard.states.items():
        if tuple(state.shape) not in ((rows, cols), (rows,)):
            raise ValueError(
                f"shard of {shard.key}: state {name} has shape {tuple(state.shape)}, not "
                f"({rows}, {cols}) or ({rows},)"
            )


def _copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor.detach())
