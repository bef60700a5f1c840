"""Which columns a recipe reads, and as what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.data import SparseFeature, Task
from prismrec.config.ids import DirectIds
from prismrec.config.numbers import MARK
from prismrec.config.propensity import Propensity
from prismrec.config.sequences import SequenceFeature
from prismrec.data.behaviours import column_kinds
from prismrec.data.domains import Domains, domains_of
from prismrec.data.encode.codes import CodeEncoder
from prismrec.data.encode.encoders import DirectEncoder, Encoder, TableRows
from prismrec.data.encode.numbers.encoders import NumberCodes, NumberEncoder, number_scalers
from prismrec.data.encode.numbers.scale import Scaler
from prismrec.data.propensity import check_columns
from prismrec.data.schema import DataSchema
from prismrec.data.source import DataSource


@dataclass(frozen=True)
class IdColumn:
    """A sparse feature, or a field of a number.

    Args:
        feature: key in the batch.
        column: column of ids, or name of the number.
        is_bag: several ids a row.
        weights: list column parallel to a bag.
        encoder: from its ids to rows of its table.
        is_strict: an id without a row of its own, unless it is missing, ends the run.
        is_sequence: its ids are of a sequence, or of a target that shares the table of one.
        sequence: the sequence whose behaviours these are, None where they are none.
    """

    feature: str
    column: str
    is_bag: bool
    weights: str | None
    encoder: Encoder
    is_strict: bool
    is_sequence: bool = False
    sequence: str | None = None

    @property
    def number(self) -> NumberCodes | None:
        """The number whose codes stand for ids, if it is a field of one."""
        return self.encoder.number if isinstance(self.encoder, NumberEncoder) else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read for it."""
        if self.number is not None:
            return self.number.source.columns
        return (self.column,) if self.weights is None else (self.column, self.weights)

    @property
    def is_managed(self) -> bool:
        """Whether its table gives rows to ids as they come: its ids become codes, not rows."""
        return isinstance(self.encoder, CodeEncoder)


@dataclass(frozen=True)
class LabelColumn:
    """A task's label.

    Args:
        column: label column.
        valid: column that is 1 in the task's sample space, None where that is every row.
        negative_rate: share of negatives that stay valid.
        propensity: weights of the rows against repeated exposure, None where none are read.
    """

    column: str
    valid: str | None
    negative_rate: float
    propensity: Propensity | None = None


@dataclass(frozen=True)
class ReadColumns:
    """Everything read for a batch, and the order of the columns in `Rows`.

    Sparse features are in the order of the recipe, then the fields of numbers, then the features of
    managed tables, and after these what a sequence looks up: targets, then by sequence its behaviours
    and intervals. `ints` are the single ids and the codes of numbers, then domain, group and time
    as far as there are any; `floats` are the dense columns, the labels, the validity of each label,
    the propensity weights of the labels that have some and, where rows may be passed over, their
    weight, 1 or 0; `bags` are the bags, those of sequences last.
    """

    sparse: tuple[IdColumn, ...]
    dense: tuple[str, ...]
    scalers: Mapping[str, Scaler]
    labels: tuple[LabelColumn, ...]
    domain: str | None
    group: str | None
    time: str | None
    domains: Domains | None = None
    """Those that `domain` may name; None where it may name any."""
    is_chain: bool = False
    """Whether a row may have a label only with the one before it."""
    sequences: tuple[SequenceFeature, ...] = ()
    is_weighed: bool = False
    """Whether rows have a weight: 0 stands for those that could not be decoded."""
    infinite_is_missing: bool = False
    """Whether an infinite number reads as missing instead of being an error."""

    @property
    def singles(self) -> tuple[IdColumn, ...]:
        """Sparse features with one id a row."""
        return tuple(each for each in self.sparse if not each.is_bag)

    @property
    def codes(self) -> tuple[IdColumn, ...]:
        """The singles without those fields of a number that share the codes of an earlier one."""
        first: dict[str, IdColumn] = {}
        for each in self.singles:
            first.setdefault(_code_key(each), each)
        return tuple(first.values())

    @property
    def code_places(self) -> tuple[int, ...]:
        """Where in `codes` each of the singles finds its ids."""
        places = {_code_key(each): at for at, each in enumerate(self.codes)}
        return tuple(places[_code_key(each)] for each in self.singles)

    @property
    def bags(self) -> tuple[IdColumn, ...]:
        """Sparse features with several ids a row."""
        return tuple(each for each in self.sparse if each.is_bag)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the domain, group and time columns that there are."""
        return tuple(name for name in (self.domain, self.group, self.time) if name is not None)

    @property
    def weighted(self) -> dict[int, Propensity]:
        """Propensities by the place of their label."""
        found = ((at, each.propensity) for at, each in enumerate(self.labels))
        return {at: propensity for at, propensity in found if propensity is not None}

    @property
    def names(self) -> frozenset[str]:
        """Columns that are decoded."""
        ids = [name for each in self.sparse if each.sequence is None for name in each.columns]
        ids += [name for each in self.sequences for name in each.columns]
        labels = [name for each in self.labels for name in (each.column, each.valid)]
        labels += [name for each in self.weighted.values() for name in each.columns]
        ids += [name for each in self.scalers.values() for name in each.columns]
        dense = [name for name in self.dense if name not in self.scalers]
        chosen = [*ids, *dense, *labels, *self.keys]
        return frozenset(name for name in chosen if name is not None)


def read_columns(
    recipe: Recipe, source: DataSource, encoders: Mapping[str, Encoder], training: bool
) -> ReadColumns:
    """The columns that `recipe` reads from a data set.

    Args:
        recipe: features and tasks.
        source: the data set.
        encoders: of every field that is looked up, see `encoders_of`.
        training: negatives are sampled down.

    Raises:
        UserError: a column is missing, or of a kind that its use does not allow.
    """
    schema, features = source.schema, recipe.features
    kinds = {name: options.ids for name, options in recipe.embedding.tables.items()}
    strict = {
        name
        for name, ids in kinds.items()
        if isinstance(ids, DirectIds) and ids.out_of_range == "fail"
    }
    for name in features.dense:
        schema.column(name, ("number",), "features.dense")
    if features.time is not None:
        schema.column(features.time, ("time",), "features.time")
    for key in ("domain", "group"):
        name = getattr(features, key)
        if name is not None:
            _integer_column(source, name, f"features.{key}")
    sparse = [
        _id_column(each, schema, encoders[each.name], is_strict=each.table_name in strict)
        for each in features.sparse
    ]
    sparse += [
        IdColumn(each.name, each.number, False, None, encoders[each.name], False)
        for number in features.numbers
        for each in number.lookups
    ]
    targets = {f.name for f in features.sparse if f.table_name in features.sequence_tables}
    sparse = [replace(each, is_sequence=each.feature in targets) for each in sparse]
    return ReadColumns(
        (
            *sorted(sparse, key=lambda each: (each.is_sequence, each.is_managed)),
            *_behaviour_columns(recipe, schema, encoders, strict),
        ),
        features.numeric,
        {each.name: each for each in number_scalers(recipe, schema)},
        tuple(_label_column(task, source, training) for task in recipe.tasks),
        features.domain,
        features.group,
        features.time,
        domains_of(recipe, schema),
        recipe.chains_labels,
        features.sequences,
        recipe.data.on_bad_file == "skip",
        recipe.train.on_nonfinite != "stop",
    )


def _code_key(feature: IdColumn) -> str:
    """Equal for features whose ids or codes are the same array: the fields of one number."""
    return f"{MARK}{feature.column}" if feature.number is not None else feature.feature


def _id_column(
    feature: SparseFeature, schema: DataSchema, encoder: Encoder, *, is_strict: bool
) -> IdColumn:
    used_as = f"features.sparse '{feature.name}'"
    is_bag = schema.column(feature.source, ("id", "ids"), used_as).kind == "ids"
    if feature.weights is not None:
        schema.column(feature.weights, ("numbers",), f"{used_as} weights")
        if not is_bag:
            raise UserError(
                f"{used_as}: weights belong to a column of kind 'ids', and '{feature.source}' "
                "holds one id a row; drop the weights"
            )
    return IdColumn(feature.name, feature.source, is_bag, feature.weights, encoder, is_strict)


def _behaviour_columns(
    recipe: Recipe, schema: DataSchema, encoders: Mapping[str, Encoder], strict: set[str]
) -> list[IdColumn]:
    """The bags of every sequence, in the order of `read_behaviours`."""
    tables = {each.key: each.table for each in recipe.features.behaviours}
    found = []
    for sequence in recipe.features.sequences:
        used_as, name = f"features.sequences '{sequence.name}'", sequence.name
        for column, kind in column_kinds(sequence):
            schema.column(column, (kind,), used_as)
        for each in sequence.behaviours:
            key = sequence.key(each)
            is_strict = tables[key] in strict
            found.append(
                IdColumn(key, each.column, True, None, encoders[key], is_strict, True, name)
            )
        if sequence.has_gaps:
            # Intervals are their own rows: the encoder hands them on.
            same = DirectEncoder(TableRows(sequence.num_buckets))
            key = sequence.interval_key
            found.append(IdColumn(key, "", True, None, same, False, True, name))
    return found


def _label_column(task: Task, source: DataSource, training: bool) -> LabelColumn:
    schema, propensity = source.schema, task.propensity
    if propensity is not None:
        check_columns(source, propensity)
        if not (training or propensity.undo):
            propensity = None
    schema.column(task.label, ("label",), f"tasks '{task.name}' label")
    if task.valid is not None:
        schema.column(task.valid, ("label", "number"), f"tasks '{task.name}' valid")
    return LabelColumn(task.label, task.valid, task.negative_rate if training else 1.0, propensity)


def _integer_column(source: DataSource, name: str, used_as: str) -> None:
    source.schema.column(name, ("id", "label", "time", "number", "other"), used_as)
    for index, file in enumerate(source.files):
        type_ = source.arrow(index).field(name).type
        if not (pa.types.is_integer(type_) or pa.types.is_boolean(type_)):
            raise UserError(
                f"{used_as}: column '{name}' of {file.name} has type {type_}, but integers are "
                "needed; number its values"
            )
