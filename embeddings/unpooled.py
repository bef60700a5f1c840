"""Tables whose vectors are not pooled: those that behaviours look up, and the targets beside them.

Notation: B rows, T behaviours of a sequence in all rows, M sets, d_m width of set m, W width of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from prismrec.embeddings.collection import (
    TYPES,
    PhysicalTable,
    output_name,
    physical_tables,
)
from prismrec.embeddings.jagged import SetSequence, newest_first, offsets_of
from prismrec.embeddings.sets import LINEAR, EmbeddingSpec, SequenceLookup

LookedUp = Sequence[dict[str, JaggedTensor]]
"""What each collection gives."""


def unpooled_tables(spec: EmbeddingSpec) -> list[list[PhysicalTable]]:
    """The physical tables whose vectors are not pooled, collection by collection.

    TorchRec wants one width, and here one type, in a collection.
    """
    groups: dict[tuple[int, str], list[PhysicalTable]] = {}
    for physical in physical_tables(spec):
        if not physical.is_pooled:
            key = physical.width, physical.form.data_type
            groups.setdefault(key, []).append(physical)
    return list(groups.values())


def build_unpooled(spec: EmbeddingSpec, device: torch.device) -> nn.ModuleList:
    """The unsharded collections, none where there is no sequence; on the meta device they hold no memory."""
    return nn.ModuleList(
        EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=physical.name,
                    embedding_dim=physical.width,
                    num_embeddings=physical.table.rows,
                    feature_names=[*physical.features, *physical.behaviours],
                    data_type=TYPES[physical.form.data_type],
                )
                for physical in group
            ],
            device=device,
        )
        for group in unpooled_tables(spec)
    )


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Where the vectors of a key in one physical table are.

    Args:
        collection: position of the collection.
        name: what TorchRec calls them there.
        width: W.
        rows_per_id: vectors that add up to that of an id.
    """

    collection: int
    name: str
    width: int
    rows_per_id: int

    def of(self, looked_up: LookedUp) -> Tensor:
        """(ids, W) vectors of the ids."""
        values = looked_up[self.collection][self.name].values().view(-1, self.width)
        if self.rows_per_id == 1:
            return values
        return values.view(-1, self.rows_per_id, self.width).sum(1)


class UnpooledViews(nn.Module):
    """Splits what the collections look up into the vectors of features and those of behaviours, by set.

    Args:
        spec: the sets, tables and sequences, every layout chosen.
    """

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        found = _vectors(spec)
        self._features = _features(spec, found)
        self._sequences = [_Sequence(spec, each, found) for each in spec.sequences]

    def features(self, looked_up: LookedUp) -> KeyedTensor:
        """The vectors of the features with one id a row, as a pooling collection would give them."""
        parts = [each.of(looked_up) for each in self._features.values()]
        widths = [each.width for each in self._features.values()]
        return KeyedTensor(list(self._features), widths, torch.cat(parts, 1), key_dim=1)

    def sequences(self, looked_up: LookedUp, ids: KeyedJaggedTensor) -> list[SetSequence]:
        """The sequences of a batch, in the order of the specification.

        Args:
            looked_up: by collection.
            ids: what was looked up, and the intervals.
        """
        return [each(looked_up, ids) for each in self._sequences]


class _Sequence:
    """One sequence out of what was looked up."""

    def __init__(
        self, spec: EmbeddingSpec, sequence: SequenceLookup, found: dict[tuple[str, str], _Vectors]
    ) -> None:
        first = sequence.behaviours[0]
        self._key, self._rows_per_id = first.key, spec.table_of(first.target).rows_per_id
        self._interval_key = sequence.interval_key if sequence.intervals else None
        tables = [physical for group in unpooled_tables(spec) for physical in group]
        self._sets = [
            [
                (found[each.key, physical.name], *physical.slices[of_set.name])
                for each in sequence.behaviours
                if of_set.covers(each.target)
                for physical in tables
                if each.key in physical.behaviours and of_set.name in physical.slices
            ]
            for of_set in spec.sets
            if of_set.name != LINEAR
        ]

    def __call__(self, looked_up: LookedUp, ids: KeyedJaggedTensor) -> SetSequence:
        first = ids[self._key]
        offsets = offsets_of(first.lengths() // self._rows_per_id)
        count = first.values().numel() // self._rows_per_id
        none = torch.zeros(count, 0, device=offsets.device)
        behaviours = [
            torch.cat([vectors.of(looked_up)[:, low:high] for vectors, low, high in parts], 1)
            if parts
            else none
            for parts in self._sets
        ]
        intervals = None if self._interval_key is None else ids[self._interval_key].values()
        return SetSequence(offsets, newest_first(offsets, count), intervals, behaviours)


def _features(spec: EmbeddingSpec, found: dict[tuple[str, str], _Vectors]) -> dict[str, _Vectors]:
    """Where the vectors of each feature are, by the name that `SetViews` looks for."""
    tables: dict[str, list[PhysicalTable]] = {}
    for group in unpooled_tables(spec):
        for physical in group:
            for feature in physical.features:
                tables.setdefault(feature, []).append(physical)
    return {
        feature if len(several) == 1 else output_name(feature, physical): found[
            feature, physical.name
        ]
        for feature, several in tables.items()
        for physical in several
    }


def _vectors(spec: EmbeddingSpec) -> dict[tuple[str, str], _Vectors]:
    """Where the vectors of each key in each physical table are.

    In a collection where a key looks several tables up, TorchRec calls its vectors `key@table`.
    """
    found = {}
    for index, group in enumerate(unpooled_tables(spec)):
        keys = [key for physical in group for key in (*physical.features, *physical.behaviours)]
        for physical in group:
            for key in (*physical.features, *physical.behaviours):
                name = key if keys.count(key) == 1 else f"{key}@{physical.name}"
                found[key, physical.name] = _Vectors(
                    index, name, physical.width, physical.table.rows_per_id
                )
    return found
