"""One TorchRec EmbeddingBagCollection for all sets, and the per-set views of what it returns.

Notation: B batch, N fields, M sets, d_m width of set m, W sum of d_m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from prismrec.embeddings.sets import EmbeddingSpec, TableSpec

_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
_PREFIX = "t_"
"""Keeps a table named `items` or `keys` clear of the module dictionary's own methods."""
_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


@dataclass(frozen=True, slots=True)
class PhysicalTable:
    """One FBGEMM table: all sets of a logical table side by side, or one of them.

    Args:
        name: name inside the EmbeddingBagCollection.
        table: the logical table.
        slices: set name -> (first, past-the-last) column in this table.
    """

    name: str
    table: TableSpec
    slices: dict[str, tuple[int, int]]

    @property
    def width(self) -> int:
        """Columns of the table."""
        return max(stop for _, stop in self.slices.values())


def physical_tables(spec: EmbeddingSpec) -> list[PhysicalTable]:
    """The FBGEMM tables that a specification turns into, by each table's layout."""
    tables = []
    for table in spec.tables:
        if table.layout == "packed":
            tables.append(PhysicalTable(_PREFIX + table.name, table, spec.offsets()))
        else:
            tables += [
                PhysicalTable(
                    f"{_PREFIX}{table.name}__{each.name}", table, {each.name: (0, each.dim)}
                )
                for each in spec.sets
            ]
    return tables


def build_collection(spec: EmbeddingSpec, device: torch.device) -> EmbeddingBagCollection:
    """The unsharded collection; on the meta device it holds no memory."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=physical.name,
                embedding_dim=physical.width,
                num_embeddings=physical.table.rows,
                feature_names=list(physical.table.features),
                pooling=_POOLING[physical.table.pooling],
                data_type=_TYPES[spec.data_type],
            )
            for physical in physical_tables(spec)
        ],
        is_weighted=spec.is_weighted,
        device=device,
    )


class SetViews(nn.Module):
    """Splits the collection's output into one (B, N, d_m) tensor per set.

    Where every table is packed the tensors are views of one (B, N, W) buffer; the buffer itself is
    the collection's output when its keys already stand in field order, else one permuted copy.

    Args:
        spec: the sets, tables and fields.
    """

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self._sets = spec.sets
        self._offsets = spec.offsets()
        self._num_fields = len(spec.fields)
        self._is_packed = all(table.layout == "packed" for table in spec.tables)
        names = _output_keys(spec)
        self._groups = (
            [[names[field][0][0] for field in spec.fields]]
            if self._is_packed
            else [
                [key for field in spec.fields for key, sets in names[field] if each.name in sets]
                for each in spec.sets
            ]
        )
        self._mixed = not self._is_packed and any(t.layout == "packed" for t in spec.tables)
        self._in_set = {
            (each.name, key): sets[each.name]
            for each in spec.sets
            for field in spec.fields
            for key, sets in names[field]
            if each.name in sets
        }

    def forward(self, pooled: KeyedTensor) -> list[Tensor]:
        """The tensors (B, N, d_m) in the order of the sets."""
        if self._is_packed:
            (keys,) = self._groups
            in_order = list(pooled.keys()) == keys
            flat = pooled.values() if in_order else KeyedTensor.regroup([pooled], self._groups)[0]
            rows = flat.view(flat.shape[0], self._num_fields, -1)
            return [rows[:, :, slice(*self._offsets[each.name])] for each in self._sets]
        if self._mixed:
            return [self._gather(pooled, m) for m in range(len(self._sets))]
        parts = KeyedTensor.regroup([pooled], self._groups)
        return [
            part.view(part.shape[0], self._num_fields, each.dim)
            for part, each in zip(parts, self._sets, strict=True)
        ]

    def _gather(self, pooled: KeyedTensor, index: int) -> Tensor:
        name = self._sets[index].name
        return torch.stack(
            [pooled[key][:, slice(*self._in_set[name, key])] for key in self._groups[index]], dim=1
        )


def _output_keys(spec: EmbeddingSpec) -> dict[str, list[tuple[str, dict[str, tuple[int, int]]]]]:
    """For every feature, the keys the collection returns it under and the sets in each of them.

    TorchRec names an output `feature`, or `feature@table` where the feature feeds several tables.
    """
    by_feature: dict[str, list[PhysicalTable]] = {}
    for physical in physical_tables(spec):
        for feature in physical.table.features:
            by_feature.setdefault(feature, []).append(physical)
    return {
        feature: [
            (feature if len(tables) == 1 else f"{feature}@{physical.name}", physical.slices)
            for physical in tables
        ]
        for feature, tables in by_feature.items()
    }
