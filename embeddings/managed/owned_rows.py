"""Vectors and optimizer states of the rows of managed tables, which follow the rows' owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.embeddings.managed.id_map import Change
from prismrec.embeddings.managed.initial import first_vectors, set_seed
from prismrec.embeddings.managed.newcomers import EMPTY
from prismrec.embeddings.shards import LocalShard

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class _Part:
    """One set's part of the rows."""

    shard: LocalShard
    deviation: float
    seed: int


class OwnedRows:
    """Vectors and optimizer state of the rows of one shard, which follow the owners of the rows.

    Args:
        shards: the shard's block of every set, views.
        deviations: standard deviation of the first vectors by set; 0 starts at zero.
        seed: of the run.
    """

    def __init__(
        self, shards: Sequence[LocalShard], deviations: dict[str, float], seed: int
    ) -> None:
        self._parts = [
            _Part(shard, deviations[shard.set_name], set_seed(seed, shard.table, shard.set_name))
            for shard in shards
        ]

    @torch.no_grad()
    def follow(self, change: Change, step: int) -> None:
        """Give rows with a new owner its first vector, the others zeros, and all of them no state.

        Args:
            change: rows with another owner, or none.
            step: the step in which that happens.
        """
        for start in range(0, len(change.rows), _ROWS_AT_ONCE):
            here = slice(start, start + _ROWS_AT_ONCE)
            for part in self._parts:
                _reset(part, change.rows[here], change.codes[here])
                if part.shard.touched is not None:
                    part.shard.touched[change.rows[here]] = step


def _reset(part: _Part, rows: Tensor, codes: Tensor) -> None:
    shard = part.shard
    columns = range(shard.col, shard.col + shard.weight.shape[1])
    if part.deviation:
        vectors = first_vectors(codes, columns, part.seed) * part.deviation
        vectors[codes == EMPTY] = 0
        shard.weight[rows] = vectors.to(shard.weight.dtype)
    else:
        shard.weight[rows] = 0
    for state in shard.states.values():
        state[rows] = 0
