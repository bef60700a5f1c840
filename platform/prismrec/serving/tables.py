"""Tables of the inference copy: their stored form, and the one lookup that reads them.

Notation: B rows of a request, N fields, M sets, N_m fields that set m covers, d_m its width.
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
SCALE_BYTES = 4
"""Scale and offset of a quantised row: two half-precision numbers before its values."""


def row_bytes(dim: int, table_type: TableType) -> int:
    """Bytes of one stored row of `dim` numbers.

    >>> [row_bytes(16, name) for name in ("fp32", "fp16", "bf16", "int8", "int4")]
    [64, 32, 32, 20, 12]
    """
    bits = {"fp32": 32, "fp16": 16, "bf16": 16, **_BITS}[table_type]
    return dim * bits // 8 + (SCALE_BYTES if table_type in _BITS else 0)


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
    return torch.cat([fused[:, -SCALE_BYTES:], fused[:, :-SCALE_BYTES]], dim=1)


def decode_rows(stored: Tensor, table_type: TableType) -> Tensor:
    """The numbers of stored rows, (rows, d) float32, as the lookup makes them.

    Args:
        stored: (rows, bytes) uint8 in the form that the lookup reads: bf16 widened to fp32.
        table_type: what they are stored as.
    """
    stored = stored.contiguous()
    if table_type in ("fp32", "bf16"):
        return stored.view(torch.float32)
    if table_type == "fp16":
        return stored.view(torch.float16).float()
    scale, offset = stored[:, :SCALE_BYTES].view(torch.float16).float().split(1, 1)
    values = stored[:, SCALE_BYTES:]
    if table_type == "int4":  # the even columns are in the low half of each byte
        values = torch.stack([values & 15, values >> 4], -1).flatten(1)
    return values.float() * scale + offset


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


@dataclass(frozen=True, slots=True)
class _Group:
    """Sets whose vectors of an id lie in one row: they cover the same fields and pool them alike.

    Args:
        sets: the sets, in the order of the recipe.
        fields: positions of the fields that they cover.
        is_mean: whether the bags of each of these fields are averaged.
    """

    sets: tuple[EmbeddingSet, ...]
    fields: tuple[int, ...]
    is_mean: tuple[bool, ...]

    @property
    def width(self) -> int:
        """Width of a row."""
        return sum(each.dim for each in self.sets)

    def tables(self, spec: EmbeddingSpec) -> list[TableSpec]:
        """The tables that its fields look up."""
        names = {spec.table_of(spec.fields[field]).name for field in self.fields}
        return [table for table in spec.tables if table.name in names]


def _groups(spec: EmbeddingSpec, table_type: TableType) -> list[_Group]:
    """The fewest groups; quantised rows have a scale per set, so there each set is alone."""
    alike: dict[tuple[object, ...], list[EmbeddingSet]] = {}
    for index, each in enumerate(spec.sets):
        alone = index if table_type in _BITS else None
        alike.setdefault((*_covered(spec, each), alone), []).append(each)
    return [_Group(tuple(sets), *_covered(spec, sets[0])) for sets in alike.values()]


def _covered(spec: EmbeddingSpec, each: EmbeddingSet) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Positions of the fields of a set, and which of them it averages."""
    names = spec.fields_of(each)
    poolings = (spec.form(spec.table_of(name), each).pooling for name in names)
    positions = tuple(spec.fields.index(name) for name in names)
    return positions, tuple(pooling == "mean" for pooling in poolings)


class TableLookup:
    """All tables of an inference copy behind one FBGEMM lookup.

    An id is looked up once for all sets of a group, and every set comes out as a view. Usually
    there is one group; sets that cover other fields, or pool the same bag in another way, are
    further ones, and so is each set of a quantised copy. Pooling is a weighted sum, a mean being
    one with weights 1 / bag size. Safe to call from several threads.

    Args:
        spec: the sets, tables and fields; layout, data types and optimizers do not matter here.
        table_type: the stored type.
        read: gives (rows, row_bytes) uint8 for a table and a set; called once for each set of a
            table, so that no more than one of them is held besides the tables.
    """

    def __init__(
        self,
        spec: EmbeddingSpec,
        table_type: TableType,
        read: Callable[[TableSpec, EmbeddingSet], Tensor],
    ) -> None:
        self._sets = [each.name for each in spec.sets]
        self._groups = _groups(spec, table_type)
        self._lock = threading.Lock()
        places = [(group, table) for group in self._groups for table in group.tables(spec)]
        index = {(id(group), table.name): i for i, (group, table) in enumerate(places)}
        self._tbe = IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (table.name, table.rows, group.width, _TYPES[table_type], EmbeddingLocation.HOST)
                for group, table in places
            ],
            feature_table_map=[
                index[id(group), spec.table_of(spec.fields[field]).name]
                for group in self._groups
                for field in group.fields
            ],
            pooling_mode=PoolingMode.SUM,
            device="cpu",
            output_dtype=SparseType.FP32,
            bounds_check_mode=BoundsCheckMode.FATAL,
        )
        self._tbe.initialize_weights()
        self._type = table_type
        self._stored: dict[tuple[str, str], Tensor] = {}
        memory = self._tbe.split_embedding_weights(split_scale_shifts=False)
        for (group, table), (rows, _) in zip(places, memory, strict=True):
            start = 0
            for each in group.sets:
                stored = _as_looked_up(read(table, each), table_type)
                part = rows[:, start : start + stored.shape[1]]
                part[:] = stored
                self._stored[table.name, each.name] = part
                start += stored.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of the tables."""
        return sum(
            part[0].numel() for part in self._tbe.split_embedding_weights(split_scale_shifts=False)
        )

    def stored(self, table: str, set_name: str) -> Tensor:
        """(rows, bytes) uint8 of a table in one set, in the form that `decode_rows` takes."""
        return self._stored[table, set_name].contiguous()

    def vectors(self, table: str, set_name: str, rows: Tensor) -> Tensor:
        """Vectors (L, d_m) of rows of a table in one set, one for each row and not pooled.

        Args:
            table: its name.
            set_name: a set that covers some feature of the table.
            rows: (L,) int64, every one of them in range.
        """
        return decode_rows(self._stored[table, set_name].index_select(0, rows), self._type)

    def __call__(self, features: Sequence[FeatureRows]) -> list[Tensor]:
        """Pooled vectors (B, N_m, d_m) of each set, for features in the order of the fields."""
        num_rows = len(features[0].lengths)
        if num_rows == 0:
            return self._per_set(torch.zeros(0, sum(g.width * len(g.fields) for g in self._groups)))
        looked_up = [features[field] for group in self._groups for field in group.fields]
        rows = torch.cat([feature.rows for feature in looked_up])
        lengths = torch.cat([feature.lengths for feature in looked_up])
        weights = self._weights(features)
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        with self._lock:
            pooled = self._tbe(rows, offsets, weights)
        return self._per_set(pooled)

    def _weights(self, features: Sequence[FeatureRows]) -> Tensor | None:
        """Weights of all ids with the mean's division in them, None where all are 1."""
        pairs = [
            pair for group in self._groups for pair in zip(group.fields, group.is_mean, strict=True)
        ]
        if not any(is_mean or features[field].weights is not None for field, is_mean in pairs):
            return None
        parts = {pair: _weights_of(features[pair[0]], pair[1]) for pair in set(pairs)}
        return torch.cat([parts[pair] for pair in pairs])

    def _per_set(self, pooled: Tensor) -> list[Tensor]:
        """Views (B, N_m, d_m) of the lookup's output, (B, the groups' fields times width)."""
        views: dict[str, Tensor] = {}
        start = 0
        for group in self._groups:
            stop = start + len(group.fields) * group.width
            block = pooled[:, start:stop].unflatten(1, (len(group.fields), group.width))
            parts = block.split([each.dim for each in group.sets], dim=2)
            views |= {each.name: part for each, part in zip(group.sets, parts, strict=True)}
            start = stop
        return [views[name] for name in self._sets]


def _weights_of(feature: FeatureRows, is_mean: bool) -> Tensor:
    weights = torch.ones(len(feature.rows)) if feature.weights is None else feature.weights
    if not is_mean:
        return weights
    return weights / feature.lengths.repeat_interleave(feature.lengths)
