"""One TorchRec EmbeddingBagCollection for all sets, and the per-set views of what it returns.

Notation: B batch, M sets, N_m fields that set m covers, d_m its width, W width of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from prismrec.embeddings.cut import Cut, cut_sets, make_cut
from prismrec.embeddings.sets import (
    LINEAR,
    EmbeddingSet,
    EmbeddingSpec,
    SetForm,
    TableSpec,
    packed_sets,
)

TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
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
        behaviours: keys of the columns of behaviours that look it up.
        form: how all of it is stored and updated.
        slices: set name -> its columns in this table.
    """

    name: str
    table: TableSpec
    features: tuple[str, ...]
    behaviours: tuple[str, ...]
    form: SetForm
    slices: dict[str, Columns]

    @property
    def is_pooled(self) -> bool:
        """Whether it gives a vector for each bag, not for each id."""
        return not self.table.behaviours

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
                    behaviours=tuple(
                        b.key
                        for b in table.behaviours
                        if any(s.covers(b.target) and s.name != LINEAR for s in sets)
                    ),
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


def build_collection(
    spec: EmbeddingSpec, device: torch.device, *, is_managed: bool = False
) -> EmbeddingBagCollection:
    """The unsharded collection; on the meta device it holds no memory.

    Its output goes set by set and, within those, in the order of the fields wherever the features
    of a table are neighbours: then no set has to be copied, see `SetViews`.

    Args:
        spec: the sets and tables.
        device: where it lies.
        is_managed: of the managed tables instead of the others.
    """
    sets = [each.name for each in spec.sets]

    def place(physical: PhysicalTable) -> tuple[int, int]:
        first_set = min(sets.index(name) for name in physical.slices)
        return first_set, min(spec.fields.index(feature) for feature in physical.features)

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=physical.name,
                embedding_dim=physical.width,
                num_embeddings=physical.table.rows,
                feature_names=sorted(physical.features, key=spec.fields.index),
                pooling=_POOLING[physical.form.pooling],
                data_type=TYPES[physical.form.data_type],
            )
            for physical in sorted(physical_tables(spec), key=place)
            if physical.is_pooled and physical.table.is_managed == is_managed
        ],
        is_weighted=spec.is_weighted,
        device=device,
    )


def side_by_side(pooled: Sequence[KeyedTensor]) -> KeyedTensor:
    """What several collections looked up, as if one had; they are copied if there are several."""
    if len(pooled) == 1:
        return pooled[0]
    keys = [key for each in pooled for key in each.keys()]
    widths = [width for each in pooled for width in each.length_per_key()]
    return KeyedTensor(keys, widths, torch.cat([each.values() for each in pooled], 1), key_dim=1)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a set's vector of one field is in the collection's output.

    Args:
        key: name of the output.
        column: the vector's first column in it.
    """

    key: str
    column: int


class SetViews(nn.Module):
    """Splits the collection's output into one (B, N_m, d_m) tensor per set.

    A set is a view of the output where its vectors lie there at equal distances in the order of the
    fields: packed or not, on one rank, or sharded by rows. Elsewhere, as when neighbouring fields'
    tables are on different ranks, it is copied, run by run of fields that do.

    Args:
        spec: the sets, tables and fields, every layout chosen.
    """

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        places = _places(spec)
        self._sets = [
            (each.dim, [places[field, each.name] for field in spec.fields_of(each)])
            for each in spec.sets
        ]
        self._keys: list[str] = []
        self._cut = Cut((), is_whole=True)

    def forward(self, pooled: KeyedTensor) -> list[Tensor]:
        """The tensors (B, N_m, d_m) in the order of the sets."""
        keys, columns = pooled.keys(), pooled.values()
        if keys != self._keys:
            start = dict(zip(keys, pooled.offset_per_key(), strict=False))
            sets = [
                (dim, [start[place.key] + place.column for place in places])
                for dim, places in self._sets
            ]
            self._keys, self._cut = list(keys), make_cut(sets, columns.shape[1])
        return cut_sets(columns, self._cut)


def output_name(feature: str, physical: PhysicalTable) -> str:
    """What the vectors are called that a feature looks up in one of several tables."""
    return f"{feature}@{physical.name}"


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
            key = feature if len(tables) == 1 else output_name(feature, physical)
            for name, columns in physical.slices.items():
                places[feature, name] = _Place(key, columns[0])
    return places
