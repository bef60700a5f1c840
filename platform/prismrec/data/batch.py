"""One step's rows of one rank, as the model and the train pipeline take them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

KeyedIds = KeyedJaggedTensor
"""Row ids of every sparse feature and row of a batch."""


@dataclass
class Batch(Pipelineable):
    """B rows of one rank; F sparse features, N numeric columns, T tasks.

    Every rank's batch has the same B at every step; rows added to reach it have
    `valid` and `weights` 0 for every task.

    Args:
        sparse: row ids of the pooled features, keys in recipe order; weighted when any
            feature has weights. No keys where all features are in `managed`.
        dense: (B, N) float32, missing values 0.
        labels: (B, T) float32 in {0, 1}, 0 where there is no label.
        valid: (B, T) float32 in {0, 1}: the row has a label and is in the task's sample space.
        weights: (B, T) float32, at least 0.
        domain: (B,) int64, 0 where the recipe names no domain.
        group: (B,) int64, 0 where the recipe names no group.
        time: (B,) int64, 0 where the recipe names no time.
        managed: codes of the ids of the features whose tables give rows to ids as they come, which
            are not in `sparse`; None where there are none.
        propensity: (B, T) float32 in (0, 1], weights against repeated exposure of the rows' labels;
            None where no task has some.
        sequence: row ids of behaviours, of the targets that share their tables, which are not in `sparse`
            either, and intervals of behaviours; the keys of a sequence have equal lengths but for the rows
            of an id. Every history may be empty; None where the recipe has no sequence.
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    labels: Tensor
    valid: Tensor
    weights: Tensor
    domain: Tensor
    group: Tensor
    time: Tensor
    managed: KeyedJaggedTensor | None = None
    propensity: Tensor | None = None
    sequence: KeyedJaggedTensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` is done with it."""
        for field in fields(self):
            part = getattr(self, field.name)
            if part is not None:
                part.record_stream(stream)

    def pin_memory(self) -> Batch:
        """The batch in page-locked host memory."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, make: Callable[[Any], Any]) -> Batch:
        parts = [getattr(self, field.name) for field in fields(self)]
        return Batch(*(None if part is None else make(part) for part in parts))

    @property
    def num_rows(self) -> int:
        """B, padding included."""
        return self.labels.shape[0]


def jagged_ids(
    keys: Sequence[str],
    values: Tensor,
    lengths: Tensor,
    counts: Sequence[int],
    weights: Tensor | None = None,
) -> KeyedJaggedTensor:
    """Bags of row ids by feature, with the offsets that TorchRec would otherwise have to count.

    Args:
        keys: F features.
        values: (sum of counts,) ids, feature by feature, row by row.
        lengths: (F * B,) ids of each feature and row.
        counts: ids of each feature.
        weights: a weight for each id, or None.
    """
    return KeyedJaggedTensor(
        keys=list(keys),
        values=values,
        weights=weights,
        lengths=lengths,
        stride=len(lengths) // len(keys) if keys else 0,
        length_per_key=list(counts),
        offset_per_key=[0, *itertools.accumulate(counts)],
    )
