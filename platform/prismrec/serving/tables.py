"""Tables of the inference copy: their stored form, and the one lookup that reads them.

Notation: B rows of a request, N fields, M sets, d_m width of set m.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from prismrec.config import UserError
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec

TableType = Literal["fp32", "fp16", "bf16", "int8", "int4"]

_TYPES = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "bf16": SparseType.FP32,  # FBGEMM looks no bfloat16 up on CPU: such rows are widened when read
    "int8": SparseType.INT8,
    "int4": SparseType.INT4,
}
_BITS = {"int8": 8, "int4": 4}
_SCALE_BYTES = 4
"""Scale and offset of a quantised row: two half-precision numbers before its values."""


def row_bytes(dim: int, table_type: TableType) -> int:
    """Bytes of one stored row of `dim` numbers.

    >>> [row_bytes(16, name) for name in ("fp32", "fp16", "bf16", "int8", "int4")]
    [64, 32, 32, 20, 12]
    """
    bits = {"fp32": 32, "fp16": 16, "bf16": 16, **_BITS}[table_type]
    return dim * bits // 8 + (_SCALE_BYTES if table_type in _BITS else 0)


def encode_table(weight: Tensor, table_type: TableType, name: str) -> Tensor:
    """The stored form of a table's vectors in one set.

    A quantised row keeps its own scale and offset for each set, so that a set of small numbers
    does not lose them to a set of large ones.

    Args:
        weight: (rows, d_m) of fp32 or fp16.
        table_type: the type to store.
        name: `table/set`, for the error.

    Returns:
        (rows, row_bytes) uint8; a view of `weight` where nothing has to change.

    Raises:
        UserError: a number is not finite in the stored type.
    """
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    _check_finite(weight, table_type, name)
    if table_type == "fp32":
        return weight.view(torch.uint8)
    if table_type == "fp16":
        return weight.half().view(torch.uint8)
    if table_type == "bf16":
        return weight.bfloat16().view(torch.uint8)
    fused = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(weight, _BITS[table_type])
    return torch.cat([fused[:, -_SCALE_BYTES:], fused[:, :-_SCALE_BYTES]], dim=1)


def _as_looked_up(stored: Tensor, table_type: TableType) -> Tensor:
    """Rows in the form that the lookup reads: bf16 widened to fp32, others as they are stored."""
    if table_type == "bf16":
        return stored.contiguous().view(torch.bfloat16).float().view(torch.uint8)
    return stored


def _check_finite(weight: Tensor, table_type: TableType, name: str) -> None:
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    widest = {"fp32": float("inf"), "bf16": torch.finfo(torch.bfloat16).max}
    limit = widest.get(table_type, torch.finfo(torch.float16).max)
    if not largest < limit:
        raise UserError(
            f"table '{name}': its largest value is {largest:g}, which {table_type} cannot hold "
            f"(below {limit:g} is needed); train it longer with a smaller learning rate"
            + ("" if table_type == "fp32" else " or use export.table_type = 'fp32'")
        )


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Rows that one feature looks up for the B rows of a request.

    Args:
        rows: (L,) int64 rows of its table, every one of them in range.
        lengths: (B,) int64 ids of each row's bag.
        weights: (L,) float32 weights of the ids, None where each is 1.
    """

    rows: Tensor
    lengths: Tensor
    weights: Tensor | None = None


class TableLookup:
    """All tables of an inference copy behind one FBGEMM lookup.

    fp32 and fp16 tables lie packed, all sets of an id side by side, and each id is looked up once;
    quantised rows have a scale per set, so there each set is looked up on its own. Pooling is a
    weighted sum, a mean being one with weights 1 / bag size. Safe to call from several threads.

    Args:
        spec: the sets, tables and fields.
        table_type: the stored type.
        read: gives (rows, row_bytes) uint8 for a table and a set; called once for each, so that
            no more than one of them is held besides the tables.
    """

    def __init__(
        self,
        spec: EmbeddingSpec,
        table_type: TableType,
        read: Callable[[TableSpec, EmbeddingSet], Tensor],
    ) -> None:
        self._fields = [spec.table_of(field) for field in spec.fields]
        self._sets = [[each] for each in spec.sets] if table_type in _BITS else [[*spec.sets]]
        self._lock = threading.Lock()
        index = {table.name: i for i, table in enumerate(spec.tables)}
        widths = [sum(each.dim for each in sets) for sets in self._sets]
        self._tbe = IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (table.name, table.rows, width, _TYPES[table_type], EmbeddingLocation.HOST)
                for width in widths
                for table in spec.tables
            ],
            feature_table_map=[
                group * len(spec.tables) + index[table.name]
                for group in range(len(widths))
                for table in self._fields
            ],
            pooling_mode=PoolingMode.SUM,
            device="cpu",
            output_dtype=SparseType.FP32,
            bounds_check_mode=BoundsCheckMode.FATAL,
        )
        self._tbe.initialize_weights()
        memory = [part[0] for part in self._tbe.split_embedding_weights(split_scale_shifts=False)]
        for group, sets in enumerate(self._sets):
            for table in spec.tables:
                rows = memory[group * len(spec.tables) + index[table.name]]
                start = 0
                for each in sets:
                    stored = _as_looked_up(read(table, each), table_type)
                    rows[:, start : start + stored.shape[1]] = stored
                    start += stored.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of the tables."""
        return sum(
            part[0].numel() for part in self._tbe.split_embedding_weights(split_scale_shifts=False)
        )

    def __call__(self, features: Sequence[FeatureRows]) -> list[Tensor]:
        """Pooled vectors of the features, in the order of the fields: (B, N, d_m) for each set."""
        num_rows = len(features[0].lengths)
        if num_rows == 0:
            return [torch.zeros(0, len(features), each.dim) for sets in self._sets for each in sets]
        rows = torch.cat([feature.rows for feature in features])
        lengths = torch.cat([feature.lengths for feature in features])
        weights = self._weights(features)
        repeats = len(self._sets)
        if repeats > 1:
            rows, lengths = rows.repeat(repeats), lengths.repeat(repeats)
            weights = None if weights is None else weights.repeat(repeats)
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        with self._lock:
            pooled = self._tbe(rows, offsets, weights)
        return self._per_set(pooled, num_rows)

    def _weights(self, features: Sequence[FeatureRows]) -> Tensor | None:
        """Weights of all ids with the mean's division in them, None where all are 1."""
        parts = []
        needed = False
        for feature, table in zip(features, self._fields, strict=True):
            weights = feature.weights
            is_mean = table.pooling == "mean"
            needed |= is_mean or weights is not None
            if weights is None:
                weights = torch.ones(len(feature.rows))
            if is_mean:
                weights = weights / feature.lengths.repeat_interleave(feature.lengths)
            parts.append(weights)
        return torch.cat(parts) if needed else None

    def _per_set(self, pooled: Tensor, num_rows: int) -> list[Tensor]:
        """Views (B, N, d_m) of the lookup's output (B, sum over groups of N * width)."""
        views, start = [], 0
        for sets in self._sets:
            width = sum(each.dim for each in sets)
            stop = start + len(self._fields) * width
            block = pooled[:, start:stop].view(num_rows, len(self._fields), width)
            views += list(block.split([each.dim for each in sets], dim=2))
            start = stop
        return views
