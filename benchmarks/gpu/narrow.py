"""A variant that the package has not: ids cross to the device as int32 and are widened there."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from prismrec.data.batch import Batch


@dataclass
class NarrowBatch(Batch):
    """A batch whose ids are int32 until it is on the device."""

    @classmethod
    def of(cls, batch: Batch) -> NarrowBatch:
        """The same rows; every id must be below 2^31. Its ids are pinned if they were."""
        narrow = batch.sparse.values().int()
        if batch.sparse.values().is_pinned():
            narrow = narrow.pin_memory()
        parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return cls(**{**parts, "sparse": _with_values(batch.sparse, narrow)})

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on another device, with ids of int64."""
        moved = super().to(device, non_blocking=non_blocking)
        moved.sparse = _with_values(moved.sparse, moved.sparse.values().long())
        return moved


def _with_values(ids: KeyedJaggedTensor, values: torch.Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=ids.keys(),
        values=values,
        lengths=ids.lengths(),
        stride=ids.stride(),
        length_per_key=ids.length_per_key(),
        offset_per_key=ids.offset_per_key(),
    )
