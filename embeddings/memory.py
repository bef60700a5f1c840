"""Bytes of the tables: what a block of one takes by its optimizer, and what a rank holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prismrec.embeddings.shards import LocalShard

_STATES = {
    "sgd": (0, 0),
    "adagrad": (1, 0),
    "rowwise_adagrad": (0, 1),
    "adam": (2, 0),
    "lamb": (2, 0),
    "partial_rowwise_adam": (1, 1),
}
"""Numbers of state for every weight, and for every row of a shard, by optimizer."""

_STATE_BYTES = 4  # states are float32, whatever the type of the weights


@dataclass(frozen=True, slots=True)
class TableBytes:
    """Bytes of weights and of their optimizer state."""

    weights: int = 0
    state: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.state

    def __add__(self, other: TableBytes) -> TableBytes:
        """Bytes of two things together."""
        return TableBytes(self.weights + other.weights, self.state + other.state)

    def times(self, count: int) -> TableBytes:
        """Bytes of several alike."""
        return TableBytes(self.weights * count, self.state * count)


def block_bytes(
    optimizer: str, data_type: Literal["fp32", "fp16"], rows: int, cols: int
) -> TableBytes:
    """What one shard of a physical table takes.

    >>> block_bytes("adagrad", "fp16", 10, 8)
    TableBytes(weights=160, state=320)
    """
    of_weight, of_row = _STATES[optimizer]
    numbers = of_weight * rows * cols + (of_row * rows if cols else 0)
    return TableBytes((2 if data_type == "fp16" else 4) * rows * cols, _STATE_BYTES * numbers)


def local_bytes(shards: Iterable[LocalShard]) -> TableBytes:
    """What the blocks on one rank take; a state that packed sets share counts once.

    Args:
        shards: the rank's blocks, replicas included.
    """
    total, seen = TableBytes(), set()
    for shard in shards:
        state = 0
        for each in shard.states.values():
            if each.dim() == 1:
                if each.data_ptr() in seen:
                    continue
                seen.add(each.data_ptr())
            state += each.numel() * each.element_size()
        total += TableBytes(shard.weight.numel() * shard.weight.element_size(), state)
    return total
