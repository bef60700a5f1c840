"""A copy in host memory of everything that training changes, taken between two steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import DenseGroup
from prismrec.embeddings.shards import LocalShard

WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class TensorBlock:
    """A block of the logical tensor `table/set/name`, copied.

    Args:
        key: `table/set`.
        name: "weight" or the name of an optimizer state.
        num_rows: rows of the whole table.
        num_cols: width of the whole set.
        row: first row of the block.
        col: first column of the block; 0 if row-wise.
        values: (rows, cols), or (rows,) if row-wise; contiguous, in host memory.
    """

    key: str
    name: str
    num_rows: int
    num_cols: int
    row: int
    col: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The copied blocks of this rank's tables and the copied dense tensors, by group and name."""

    blocks: tuple[TensorBlock, ...]
    dense: dict[DenseGroup, dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        """Host memory that the copy takes until it is written."""
        tensors = [block.values for block in self.blocks]
        tensors += [tensor for group in self.dense.values() for tensor in group.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def capture(
    shards: Sequence[LocalShard],
    dense: Mapping[str, Tensor],
    dense_optimizer: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
) -> Snapshot:
    """Copy this rank's state to host memory; training may go on as soon as this returns.

    Replicas and empty blocks are left out. Only rank 0 saves dense tensors, so the other ranks may
    give empty mappings and spare the copy.

    Args:
        shards: blocks of the tables on this rank.
        dense: parameters and buffers of the model by name.
        dense_optimizer: their optimizer state by `parameter/state`, scalars as 0-d tensors.
        ema: moving averages of parameters by name.

    Raises:
        ValueError: a shard does not lie inside its table, or has row-wise state over a part of a
            set's columns, which has no form that is free of the plan.
    """
    blocks = []
    for shard in shards:
        check_shard(shard)
        if shard.is_replica or not shard.weight.numel():
            continue
        for name, tensor in tensors_of(shard).items():
            blocks.append(
                TensorBlock(
                    shard.key,
                    name,
                    shard.num_rows,
                    shard.num_cols,
                    shard.row,
                    shard.col,
                    _copy(tensor),
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
    return Snapshot(tuple(blocks), copies)


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
        if state.ndim == 1 and cols < shard.num_cols:
            raise ValueError(
                f"shard of {shard.key}: row-wise state {name} over {cols} of {shard.num_cols} "
                f"columns; a plan must not cut the columns of a table with row-wise state"
            )


def _copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return copy.copy_(tensor.detach())
