"""The model as it serves: raw columns in, probabilities out, in one process without training code.

Notation: B rows of a request, N fields, T tasks.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prismrec.config import Recipe
from prismrec.config.data import SparseFeature
from prismrec.data.behaviours import read_behaviours
from prismrec.data.domains import Domains, domains_of
from prismrec.data.encode.codes import owner_encoder
from prismrec.data.encode.copies import with_copies
from prismrec.data.encode.encoders import Encoder, Mask
from prismrec.data.encode.numbers.encoders import NumberEncoder, number_scalers
from prismrec.data.encode.numbers.scale import Scaler
from prismrec.data.encode.tables import encoders_of
from prismrec.data.propensity import weights_of
from prismrec.data.schema import Kind
from prismrec.embeddings.jagged import SetSequence, newest_first
from prismrec.embeddings.sets import LINEAR, EmbeddingSet, EmbeddingSpec, SequenceLookup
from prismrec.models import Assembly, Inputs, build_model, fields_of, spec_of
from prismrec.models.calibration import LogitMap, mapped
from prismrec.models.objectives import build_decoder
from prismrec.serving import columns as raw
from prismrec.serving.bundle import (
    Manifest,
    check_files,
    load_head,
    read_manifest,
    read_owners,
    table_reader,
)
from prismrec.serving.sides import Sides, look_up, repeated
from prismrec.serving.tables import FeatureRows, TableLookup, TableType


class InferenceModel:
    """An inference copy in memory. Safe to call from several threads.

    Args:
        manifest: what the copy says of itself.
        spec: its sets and tables.
        encoders: of every field that is looked up.
        lookup: its tables.
        head: its dense part, in evaluation mode.
        scalers: of the numbers that modules of the head read, by name.

    Attributes:
        tasks: names of the tasks, in the order of the logits.
        columns: kinds of the raw columns that a request needs, by name.
        logit_offsets: (T,) what negative down-sampling makes of the head's logits; part of what
            `predict_logits` returns.
        maps: calibration of each task's logits behind that; empty where there is none.
        spec: its sets and tables.
        head: its dense part.
        assembly: sorts what the tables give into the inputs of the dense part.
        unknown_ids: ids looked up as unknown so far, by feature.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: EmbeddingSpec,
        encoders: Mapping[str, Encoder],
        lookup: TableLookup,
        head: nn.Module,
        scalers: Mapping[str, Scaler],
    ) -> None:
        self.manifest = manifest
        self.recipe: Recipe = manifest.typed_recipe()
        self.tasks: tuple[str, ...] = tuple(manifest.tasks)
        self.columns: dict[str, Kind] = {
            name: manifest.data_schema.columns[name].kind for name in self.recipe.raw_columns
        }
        self.logit_offsets: Tensor = torch.tensor(manifest.logit_offsets)
        self.maps = [LogitMap.from_json(each) for each in manifest.calibration]
        self.unknown_ids: Counter[str] = Counter()
        self._lookup = lookup
        self.head = head
        self._is_bf16 = manifest.dense_type == "bf16"
        self._decoder = build_decoder(self.recipe)
        self.assembly = Assembly(spec, self.recipe.model, self.recipe.num_logits)
        self.spec = spec
        self._encoders, self._scalers = encoders, scalers
        self._domains: Domains | None = None
        if self.recipe.reads_domain:
            self._domains = domains_of(self.recipe, manifest.data_schema)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> InferenceModel:
        """Read an inference copy; every file is held against its SHA-256 first.

        Raises:
            UserError: the directory is not an inference copy, or is damaged.
        """
        manifest = read_manifest(path)
        check_files(path, manifest)
        recipe = with_copies(manifest.typed_recipe(), path)
        spec = spec_of(recipe, manifest.data_schema)
        encoders = encoders_of(recipe, manifest.data_schema)
        for table, owners in read_owners(path, spec):
            known = owner_encoder(encoders[table.features[0]].rows, owners.numpy())
            encoders |= dict.fromkeys(table.features, known)
        head = build_head(recipe, spec)
        load_head(path, head)
        lookup = TableLookup(spec, manifest.table_type, table_reader(path, spec))
        scalers = {each.name: each for each in number_scalers(recipe, manifest.data_schema)}
        return cls(manifest, spec, encoders, lookup, head.eval(), scalers)

    @property
    def table_type(self) -> TableType:
        """Stored type of the tables."""
        return self.manifest.table_type

    @property
    def table_bytes(self) -> int:
        """Memory of the tables."""
        return self._lookup.num_bytes

    def predict_logits(
        self,
        columns: Mapping[str, Any],
        *,
        shared: Mapping[str, Any] | None = None,
        calibrated: bool = True,
    ) -> Tensor:
        """Logits (B, T) of raw columns, right for the rate of negatives in the world.

        Args:
            columns: Arrow arrays, NumPy arrays, pandas series or lists, by column name, as in the
                training data; others than the needed ones are ignored.
            shared: columns of one value each that hold for all rows, such as those of the user whose
                candidates the rows are: they are encoded and looked up once. With no others B is 1.
            calibrated: with the calibration, where there is one.

        Raises:
            UserError: a column is missing, of another type, or of another length, or a row names
                no domain that the model tells apart.
        """
        return self.logits_of(self.sides(columns, shared or {}), calibrated=calibrated)

    def sides(self, columns: Mapping[str, Any], shared: Mapping[str, Any]) -> Sides:
        """The needed columns, checked; see `predict_logits`."""
        given = {name: kind for name, kind in self.columns.items() if name in shared}
        other = {name: kind for name, kind in self.columns.items() if name not in shared}
        arrays = raw.to_arrow(columns, other)
        return Sides.checked(arrays, raw.to_arrow(shared, given))

    def logits_of(self, sides: Sides, *, calibrated: bool = True) -> Tensor:
        """`predict_logits` of columns that are checked already."""
        with torch.inference_mode():
            inputs, _ = self.inputs(sides)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
                given, _ = self.head(inputs)
            logits, _ = self._decoder(given.float())
            logits = self._decoder.served(logits)
            logits = logits + self.logit_offsets - self._log_propensity(sides)
            return mapped(self.maps, logits) if calibrated else logits

    def inputs(self, sides: Sides) -> tuple[Inputs, list[FeatureRows]]:
        """What the head is given for raw columns.

        Args:
            sides: the needed columns, of the kinds in `columns`.

        Returns:
            The tensors, and what each field of `spec.fields` looked up: B bags, or one where all rows
            share it.
        """
        features = self.features(sides)
        sets = look_up(self._lookup, features, sides.rows)
        inputs = Inputs(
            sets=self.assembly.sets(sets),
            linear=self.assembly.linear(sets),
            dense=self.dense(sides),
            domain=self.domain(sides),
            sequences=self.assembly.sequences(sets, self._sequences(sides)),
        )
        return inputs, features

    def features(self, sides: Sides) -> list[FeatureRows]:
        """What each field of `spec.fields` looks up: B bags, or one where all rows share it."""
        found = [self._rows(sides, each) for each in self.recipe.features.sparse]
        return found + self._number_rows(sides)

    def vectors(self, table: str, set_name: str, rows: Tensor) -> Tensor:
        """Vectors (L, d_m) in one set of rows (L,) of a table, fp32."""
        return self._lookup.vectors(table, set_name, rows)

    def stored_rows(self, table: str, set_name: str) -> Tensor:
        """(rows, bytes) uint8 of a table in one set, as the lookup reads them."""
        return self._lookup.stored(table, set_name)

    def probabilities(
        self, columns: Mapping[str, Any], shared: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Probabilities (B, T), float32, of raw columns; see `predict_logits`."""
        return torch.sigmoid(self.predict_logits(columns, shared=shared))

    def _rows(self, sides: Sides, feature: SparseFeature) -> FeatureRows:
        arrays = sides.of([feature.source, *([feature.weights] if feature.weights else [])])
        ids, lengths = raw.bags(arrays[feature.source])
        rows, encode = self._encoded(feature.name, ids), self._encoders[feature.name]
        weights = None
        if feature.weights:
            of_ids = raw.weights(arrays[feature.weights], feature.weights, lengths)
            weights = torch.from_numpy(of_ids.repeat(encode.rows_per_id))
        counts = torch.from_numpy(lengths * encode.rows_per_id)
        return FeatureRows(rows, counts, weights)

    def _encoded(self, key: str, ids: NDArray[np.int64]) -> Tensor:
        """Rows of the ids of a feature or a column of behaviours; unknown ones are counted."""
        rows, unknown = self._encoders[key](ids)
        self._count_unknown(key, unknown)
        return torch.from_numpy(rows)

    def _sequences(self, sides: Sides) -> list[SetSequence]:
        """The sequences as all sets see them, read as the trainer reads them."""
        features, found = self.recipe.features, []
        for sequence, lookup in zip(features.sequences, self.spec.sequences, strict=True):
            timed = [features.time] if sequence.times and features.time else []
            arrays = sides.of([*sequence.columns, *timed])
            where = "row {} of the request".format
            bags = read_behaviours(sequence, arrays, features.time, where)
            offsets = torch.from_numpy(bags[0].offsets.copy())
            count = int(offsets[-1])
            columns = {
                each.key: self._encoded(each.key, bag.values)
                for each, bag in zip(lookup.behaviours, bags, strict=False)  # intervals come last
            }
            read = SetSequence(
                offsets=offsets,
                positions=newest_first(offsets, count),
                intervals=torch.from_numpy(bags[-1].values) if lookup.intervals else None,
                behaviours=[
                    self._behaviours(each, lookup, columns, count)
                    for each in self.spec.sets
                    if each.name != LINEAR
                ],
            )
            found.append(repeated(read, sides.rows))
        return found

    def _behaviours(
        self,
        of_set: EmbeddingSet,
        lookup: SequenceLookup,
        columns: Mapping[str, Tensor],
        count: int,
    ) -> Tensor:
        """Vectors (T, W) of a sequence's behaviours in one set."""
        parts = []
        for each in lookup.behaviours:
            if of_set.covers(each.target):
                table = self.spec.table_of(each.target)
                rows = self._lookup.vectors(table.name, of_set.name, columns[each.key])
                parts.append(rows.view(count, table.rows_per_id, of_set.dim).sum(1))
        return torch.cat(parts, 1) if parts else torch.zeros(count, 0)

    def domain(self, sides: Sides) -> Tensor | None:
        """Domain of each row, (B,); None for a model that does not tell them apart."""
        if self._domains is None:
            return None
        ids = raw.keys(sides.whole(self._domains.column))
        return torch.from_numpy(self._domains.known(ids, "row {} of the request".format))

    def _log_propensity(self, sides: Sides) -> Tensor:
        """(B, T) what weights against repeated exposure, where they are undone, took off the logits."""
        logs = torch.zeros(sides.rows, len(self.tasks))
        for t, task in enumerate(self.recipe.tasks):
            section = task.propensity
            if section is not None and section.undo:
                by = None if section.by is None else sides.whole(section.by)
                weights = weights_of(section, sides.whole(section.column), by)
                logs[:, t] = torch.log(torch.from_numpy(weights))
        return logs

    def _number_rows(self, sides: Sides) -> list[FeatureRows]:
        """Rows of the fields of numbers, whose codes are found once for all fields of a number."""
        codes: dict[str, NDArray[np.int64]] = {}
        found = []
        for number in self.recipe.features.numbers:
            for field in number.lookups:
                encode = self._encoders[field.name]
                assert isinstance(encode, NumberEncoder)
                if number.name not in codes:
                    codes[number.name] = encode.number(sides.of(number.columns))
                rows, unknown = encode(codes[number.name])
                self._count_unknown(field.name, unknown)
                counts = torch.full((len(codes[number.name]),), encode.rows_per_id)
                found.append(FeatureRows(torch.from_numpy(rows), counts))
        return found

    def _count_unknown(self, field: str, unknown: Mask | None) -> None:
        if unknown is not None:
            with self._lock:
                self.unknown_ids[field] += int(unknown.sum())

    def dense(self, sides: Sides) -> Tensor:
        """Numeric columns (B, D) as the head reads them, a missing one 0."""
        features = self.recipe.features
        columns = {each.name: each.columns for each in features.numbers}
        dense = np.zeros((sides.rows, len(features.numeric)), dtype=np.float32)
        for index, name in enumerate(features.numeric):
            scaler = self._scalers.get(name)
            if scaler is None:
                dense[:, index] = raw.numbers(sides.of([name])[name])
            else:
                dense[:, index] = raw.without_nan(scaler(sides.of(columns[name])))
        return torch.from_numpy(dense)


def build_head(recipe: Recipe, spec: EmbeddingSpec) -> nn.Module:
    """The dense part that a recipe describes, on the CPU, with weights still to be filled."""
    with torch.random.fork_rng(devices=[]):
        return build_model(recipe.model, fields_of(recipe, spec))
