"""One TorchRec EmbeddingBagCollection for all sets, and the per-set views of what it returns.

Notation: B batch, M sets, N_m fields that set m covers, d_m its width, W width of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from prismrec.embeddings.sets import (
    EmbeddingSet,
    EmbeddingSpec,
    SetForm,
    TableSpec,
    packed_sets,
)

_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
_PREFIX = "t_"
"""Keeps a table named `items` or `keys` clear of the module dictionary's own methods."""
_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}

Columns = tuple[int, int]
"""First and past-the-last column."""


@dataclass(frozen=True, slots=True)
class PhysicalTable:
    """One FBGEMM table: sets of a logical table side by side, or one of them.

    Args:
        name: name inside the EmbeddingBagCollection.
        table: the logical table.
        features: the features that look it up.
        form: how all of it is stored and updated.
        slices: set name -> its columns in this table.
    """

    name: str
    table: TableSpec
    features: tuple[str, ...]
    form: SetForm
    slices: dict[str, Columns]

    @property
    def width(self) -> int:
        """Columns of the table."""
        return max(stop for _, stop in self.slices.values())


def physical_tables(spec: EmbeddingSpec) -> list[PhysicalTable]:
    """The FBGEMM tables that a specification turns into, by each table's layout.

    A table whose sets all share one row has the table's name, the others that of their first set
    behind it.

    Raises:
        ValueError: a table's layout is still the planner's to choose.
    """
    tables = []
    for table in spec.tables:
        if table.layout == "auto":
            raise ValueError(f"table '{table.name}': choose a layout before building it")
        groups = packed_sets(spec, table)
        for sets in groups:
            is_whole = len(groups) == 1 and table.layout != "separate"
            suffix = "" if is_whole else f"__{sets[0].name}"
            tables.append(
                PhysicalTable(
                    name=_PREFIX + table.name + suffix,
                    table=table,
                    features=tuple(f for f in table.features if any(s.covers(f) for s in sets)),
                    form=spec.form(table, sets[0]),
                    slices=_side_by_side(sets),
                )
            )
    return tables


def _side_by_side(sets: tuple[EmbeddingSet, ...]) -> dict[str, Columns]:
    columns, start = {}, 0
    for each in sets:
        columns[each.name] = (start, start + each.dim)
        start += each.dim
    return columns


def build_collection(spec: EmbeddingSpec, device: torch.device) -> EmbeddingBagCollection:
    """The unsharded collection; on the meta device it holds no memory."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=physical.name,
                embedding_dim=physical.width,
                num_embeddings=physical.table.rows,
                feature_names=list(physical.features),
                pooling=_POOLING[physical.form.pooling],
                data_type=_TYPES[physical.form.data_type],
            )
            for physical in physical_tables(spec)
        ],
        is_weighted=spec.is_weighted,
        device=device,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a set's vector of one field is in the collection's output.

    Args:
        key: name of the output.
        columns: the set's columns in it.
        width: columns of the output.
    """

    key: str
    columns: Columns
    width: int


class SetViews(nn.Module):
    """Splits the collection's output into one (B, N_m, d_m) tensor per set.

    Outputs of the same fields are put side by side once, whatever the number of sets in them, and
    not even once where they already lie so; the sets are views of that. A set that lies in
    different columns for different fields is copied.

    Args:
        spec: the sets, tables and fields, every layout chosen.
    """

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        places = _places(spec)
        self._groups: list[list[str]] = []
        self._views: list[tuple[int, int, Columns] | list[_Place]] = []
        for each in spec.sets:
            of_set = [places[field, each.name] for field in spec.fields_of(each)]
            if len({(place.columns, place.width) for place in of_set}) > 1:
                self._views.append(of_set)
                continue
            keys = [place.key for place in of_set]
            if keys not in self._groups:
                self._groups.append(keys)
            self._views.append((self._groups.index(keys), of_set[0].width, of_set[0].columns))

    @property
    def num_copied(self) -> int:
        """Sets that are copied field by field, because no view can hold them."""
        return sum(isinstance(view, list) for view in self._views)

    def forward(self, pooled: KeyedTensor) -> list[Tensor]:
        """The tensors (B, N_m, d_m) in the order of the sets."""
        blocks = self._side_by_side(pooled)
        sets = []
        for view in self._views:
            if isinstance(view, list):
                parts = [pooled[place.key][:, slice(*place.columns)] for place in view]
                sets.append(torch.stack(parts, dim=1))
            else:
                group, width, columns = view
                rows = blocks[group].view(blocks[group].shape[0], -1, width)
                sets.append(rows[:, :, slice(*columns)])
        return sets

    def _side_by_side(self, pooled: KeyedTensor) -> list[Tensor]:
        if not self._groups:
            return []
        if self._groups == [list(pooled.keys())]:
            return [pooled.values()]
        return KeyedTensor.regroup([pooled], self._groups)


def _places(spec: EmbeddingSpec) -> dict[tuple[str, str], _Place]:
    """Where the vector of every field in every set that covers it is, by field and set.

    TorchRec names an output `feature`, or `feature@table` where the feature feeds several tables.
    """
    by_feature: dict[str, list[PhysicalTable]] = {}
    for physical in physical_tables(spec):
        for feature in physical.features:
            by_feature.setdefault(feature, []).append(physical)
    places = {}
    for feature, tables in by_feature.items():
        for physical in tables:
            key = feature if len(tables) == 1 else f"{feature}@{physical.name}"
            for name, columns in physical.slices.items():
                places[feature, name] = _Place(key, columns, physical.width)
    return places
