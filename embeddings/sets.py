"""What the embedding tables are, whatever their layout and placement: sets x features.

Notation: B batch, N fields (features), M sets, d_m width of set m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from prismrec.config import Recipe, UserError
from prismrec.config.data import SparseFeature
from prismrec.config.embedding import (
    Communication,
    DataType,
    EmbeddingSection,
    Kernel,
    Layout,
    ShardingKind,
    TableOptimizer,
    TableOptions,
    covered,
)
from prismrec.config.sequence_tables import pooled_problem
from prismrec.config.sets import LINEAR as LINEAR
from prismrec.config.sets import linear_set, packing_problem
from prismrec.data.encode.numbers.tables import Start, number_tables
from prismrec.data.encode.tables import id_tables
from prismrec.data.schema import DataSchema
from prismrec.embeddings.managed.spec import ManagedRows, managed_rows

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """One embedding set.

    Args:
        name: unique name.
        dim: width d_m, a multiple of 4.
        init_std: standard deviation of the initial weights; 0 starts at zero.
        features: the fields it covers; None for all of them.
        data_type: storage type, None for the table's.
        pooling: None for the table's.
        optimizer: None for the table's.
        learning_rate: overrides that of the optimizer, None leaves it.
    """

    name: str
    dim: int
    init_std: float
    features: tuple[str, ...] | None = None
    data_type: DataType | None = None
    pooling: Pooling | None = None
    optimizer: TableOptimizer | None = None
    learning_rate: float | None = None

    def covers(self, feature: str) -> bool:
        """Whether a field has a vector in this set."""
        return covered(self.features, feature)


@dataclass(frozen=True, slots=True)
class Behaviours:
    """A column of behaviours of a sequence.

    Args:
        key: its name in the batch.
        target: the feature that it is matched with, whose table it looks up.
        most: behaviours of a row at most.
    """

    key: str
    target: str
    most: int


@dataclass(frozen=True, slots=True)
class SequenceLookup:
    """A sequence as the tables and the model see it.

    Args:
        name: its name.
        behaviours: its columns.
        positions: positions that are told apart.
        intervals: intervals that are told apart, 0 where no time is known.
        interval_key: name of the intervals in the batch.
    """

    name: str
    behaviours: tuple[Behaviours, ...]
    positions: int
    intervals: int
    interval_key: str


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One logical table: the vectors of one id space in every set that covers its features.

    Args:
        name: unique name.
        rows: number of rows, those of unknown ids among them, which come last, or last in each
            bucket of a managed table.
        features: features that look ids up here.
        pooling: "sum" or "mean", one for all its features.
        layout: how its sets lie in memory; "auto" leaves it to the planner.
        sharding: where its parts go; "auto" leaves it to the planner.
        optimizer: rule and hyper-parameters of its optimizer.
        kernel: which memory holds it; "auto" leaves it to the planner.
        data_type: storage type, None for everyone's.
        managed: how rows are given to ids as they come; None where an id's row is fixed.
        unknown_rows: rows for ids that have none of their own. They start at zero, so that one that
            training never meets adds nothing, and are trained like any other.
        rows_per_id: rows that an id looks up; their sum is its vector.
        ids_per_row: ids of one row of the data over all features, as far as the planner knows; None
            for one of each feature.
        starts: for a table of numbers, the rows that begin with drawn weights, with a deviation of
            their own; None where all known rows do, with that of the set.
        behaviours: columns of sequences that look ids up here as well. With any, nothing is pooled here:
            each id gives a vector, those of `features` too.
    """

    name: str
    rows: int
    features: tuple[str, ...]
    pooling: Pooling
    layout: Layout
    sharding: ShardingKind
    optimizer: TableOptimizer
    kernel: Kernel = "auto"
    data_type: DataType | None = None
    managed: ManagedRows | None = None
    unknown_rows: int = 1
    rows_per_id: int = 1
    ids_per_row: float | None = None
    starts: tuple[Start, ...] | None = None
    behaviours: tuple[Behaviours, ...] = ()

    @property
    def known_rows(self) -> int:
        """Rows before those of unknown ids."""
        return self.rows - self.unknown_rows

    @property
    def is_managed(self) -> bool:
        """Whether rows are given to ids as they come; such a table is packed and cut by rows."""
        return self.managed is not None


@dataclass(frozen=True, slots=True)
class SetForm:
    """How one set of one table is stored and updated; only sets of one form can be packed.

    Args:
        data_type: storage type.
        pooling: how a bag becomes a vector.
        optimizer: rule and hyper-parameters.
    """

    data_type: DataType
    pooling: Pooling
    optimizer: TableOptimizer


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """All sets over all tables.

    Args:
        sets: the embedding sets, in the order of the model's inputs; `linear` last, if any.
        tables: the logical tables.
        fields: features in the order of the model's fields.
        data_type: "fp32" or "fp16" storage of tables that do not say.
        is_weighted: whether any feature carries weights.
        seed: seed of the initial weights.
        allow_coupled_sets: whether packed sets may share one number of optimizer state for a row.
        communication: types on the wire.
        cache_load_factor: share of a cached table's rows that its cache holds.
        num_domains: domains of rows that the model or the loss tells apart, 0 where neither does.
        sequences: the sequences, in the order of the model's.
    """

    sets: tuple[EmbeddingSet, ...]
    tables: tuple[TableSpec, ...]
    fields: tuple[str, ...]
    data_type: DataType
    is_weighted: bool = False
    seed: int = 1
    allow_coupled_sets: bool = False
    communication: Communication = field(default_factory=Communication)
    cache_load_factor: float = 0.2
    num_domains: int = 0
    sequences: tuple[SequenceLookup, ...] = ()

    def table_of(self, feature: str) -> TableSpec:
        """The table that a feature looks up."""
        return next(table for table in self.tables if feature in table.features)

    def sets_of(self, table: TableSpec) -> tuple[EmbeddingSet, ...]:
        """The sets that cover any of a table's features."""
        return tuple(s for s in self.sets if any(s.covers(f) for f in table.features))

    def fields_of(self, embedding_set: EmbeddingSet) -> tuple[str, ...]:
        """The fields that a set covers, in the order of the model's fields."""
        return tuple(field for field in self.fields if embedding_set.covers(field))

    def form(self, table: TableSpec, embedding_set: EmbeddingSet) -> SetForm:
        """How a set of a table is stored and updated: its own way where it has one."""
        optimizer = embedding_set.optimizer or table.optimizer
        if embedding_set.learning_rate is not None:
            rate = {"learning_rate": embedding_set.learning_rate}
            optimizer = optimizer.model_copy(update=rate)
        return SetForm(
            data_type=embedding_set.data_type or table.data_type or self.data_type,
            pooling="sum" if table.behaviours else embedding_set.pooling or table.pooling,
            optimizer=optimizer,
        )


def embedding_spec(
    recipe: Recipe, schema: DataSchema, *, needs_sets: bool, needs_linear: bool
) -> EmbeddingSpec:
    """The sets and tables that a recipe asks for on a data set.

    Args:
        recipe: the resolved recipe.
        schema: the data set's schema, for the number of ids of each column.
        needs_sets: whether the model reads embedding sets.
        needs_linear: whether the model has first-order weights.

    Raises:
        UserError: a column is missing or of another kind, features sharing a table disagree, or
            a packed row is wider than FBGEMM can hold.
    """
    section = recipe.embedding
    sets = _sets(recipe) if needs_sets else []
    if needs_linear:
        sets.append(EmbeddingSet(LINEAR, linear_set(recipe.num_logits).dim, 0.0))
    spec = EmbeddingSpec(
        sets=tuple(sets),
        tables=(*_tables(recipe, schema), *_number_tables(recipe)),
        fields=tuple(field.name for field in recipe.features.lookups),
        data_type=section.data_type,
        is_weighted=any(feature.weights for feature in recipe.features.sparse),
        seed=recipe.seed,
        allow_coupled_sets=section.allow_coupled_sets,
        communication=section.communication,
        cache_load_factor=section.cache_load_factor,
        sequences=_sequences(recipe),
    )
    for table in spec.tables:
        _check_unpooled(recipe, schema, table)
        _check_pooled(spec, table)
        _check_managed(spec, table)
        for sets_packed in packed_sets(spec, table):
            _check_packed(spec, table, sets_packed)
    return spec


def packed_sets(spec: EmbeddingSpec, table: TableSpec) -> list[tuple[EmbeddingSet, ...]]:
    """The sets of a table that lie in one row, group by group, by the table's layout.

    Sets that are stored, pooled or updated differently cannot share a row, whatever the layout. Neither
    do first-order weights and vectors that behaviours look up, who do not look up the weights.
    """
    sets = spec.sets_of(table)
    if table.layout == "separate":
        return [(each,) for each in sets]
    groups: dict[tuple[SetForm, bool], list[EmbeddingSet]] = {}
    for each in sets:
        is_apart = bool(table.behaviours) and each.name == LINEAR
        groups.setdefault((spec.form(table, each), is_apart), []).append(each)
    return [tuple(group) for group in groups.values()]


def _sets(recipe: Recipe) -> list[EmbeddingSet]:
    section = recipe.embedding
    return [
        EmbeddingSet(
            name=each.name,
            dim=each.dim,
            init_std=each.init_std or section.init_std,
            features=each.features,
            data_type=each.data_type,
            pooling=each.pooling,
            optimizer=each.optimizer,
            learning_rate=each.learning_rate,
        )
        for each in section.resolved_sets
    ]


def _sequences(recipe: Recipe) -> tuple[SequenceLookup, ...]:
    return tuple(
        SequenceLookup(
            name=each.name,
            behaviours=tuple(
                Behaviours(each.key(one), one.target, each.max_length) for one in each.behaviours
            ),
            positions=each.positions,
            intervals=each.num_buckets if each.has_gaps else 0,
            interval_key=each.interval_key,
        )
        for each in recipe.features.sequences
    )


def _tables(recipe: Recipe, schema: DataSchema) -> list[TableSpec]:
    section = recipe.embedding
    behaviours = [each for sequence in _sequences(recipe) for each in sequence.behaviours]
    tables = []
    for name, ids in id_tables(recipe, schema).items():
        features = [each for each in recipe.features.sparse if each.table_name == name]
        poolings = {
            f.pooling for f in features if schema.columns[f.source].kind == "ids" or f.weights
        }
        if len(poolings) > 1:
            raise UserError(
                f"embedding.tables.{name}: its features disagree on pooling "
                f"({_list(features)}); use one pooling or two tables"
            )
        options = section.tables.get(name)
        managed = managed_rows(options, ids.rows.unknown)
        tables.append(
            TableSpec(
                name=name,
                rows=ids.rows.total,
                features=tuple(f.name for f in features),
                pooling=poolings.pop() if poolings else "sum",
                layout="packed" if managed else (options and options.layout) or section.layout,
                sharding="row_wise"
                if managed
                else (options and options.sharding) or section.sharding,
                optimizer=_optimizer(section, options),
                kernel=(options and options.kernel) or section.kernel,
                data_type=options.data_type if options else None,
                unknown_rows=ids.rows.unknown,
                rows_per_id=ids.rows_per_id,
                ids_per_row=options.ids_per_row if options else None,
                managed=managed,
                behaviours=tuple(b for b in behaviours if b.target in {f.name for f in features}),
            )
        )
    return tables


def _number_tables(recipe: Recipe) -> list[TableSpec]:
    section, lookups = recipe.embedding, recipe.features.lookups
    return [
        TableSpec(
            name=name,
            rows=table.rows.total,
            features=tuple(each.name for each in lookups if each.table_name == name),
            pooling="sum",
            layout=table.options.layout or section.layout,
            sharding=table.options.sharding or section.sharding,
            optimizer=_optimizer(section, table.options),
            kernel=table.options.kernel or section.kernel,
            data_type=table.options.data_type,
            unknown_rows=0,
            rows_per_id=table.rows_per_id,
            starts=table.starts,
        )
        for name, table in number_tables(recipe).items()
    ]


def _optimizer(section: EmbeddingSection, options: TableOptions | None) -> TableOptimizer:
    """The optimizer of one table: its own or everyone's, with its own learning rate if it has one."""
    chosen = (options and options.optimizer) or section.optimizer
    if options is None or options.learning_rate is None:
        return chosen
    return chosen.model_copy(update={"learning_rate": options.learning_rate})


def _check_unpooled(recipe: Recipe, schema: DataSchema, table: TableSpec) -> None:
    """Refuse a bag where vectors are not pooled."""
    for index, feature in enumerate(recipe.features.sparse if table.behaviours else ()):
        if feature.name in table.features and schema.columns[feature.source].kind == "ids":
            raise UserError(
                f"features.sparse[{index}].table: {pooled_problem(feature, table.name)}"
            )


def _check_pooled(spec: EmbeddingSpec, table: TableSpec) -> None:
    """Refuse a mean of rows where an id has several: their sum is its vector."""
    for each in spec.sets_of(table):
        if table.rows_per_id > 1 and spec.form(table, each).pooling == "mean":
            what = f"embedding.tables.{table.name}.ids: an id's"
            if table.starts is not None:
                what = f"embedding.sets: in table '{table.name}' a number's"
            raise UserError(
                f"{what} vector is the sum of {table.rows_per_id} rows, which the mean pooling of "
                f"set '{each.name}' would divide; use pooling = 'sum', or ids with one row each"
            )


def _check_managed(spec: EmbeddingSpec, table: TableSpec) -> None:
    """Refuse a managed table in several parts, which would each give an id a row of its own."""
    groups = packed_sets(spec, table)
    if table.is_managed and len(groups) > 1:
        first, second = groups[0][0].name, groups[1][0].name
        raise UserError(
            f"embedding.tables.{table.name}.ids: the sets of a table of managed ids lie in one row, "
            f"but '{first}' and '{second}' differ in data_type, pooling, learning_rate or optimizer; "
            "give them the same, or the table another kind of ids"
        )


def _check_packed(spec: EmbeddingSpec, table: TableSpec, sets: tuple[EmbeddingSet, ...]) -> None:
    """Refuse sets in one row that would change each other's steps, or a row that is too wide."""
    if table.layout == "auto":
        return
    rule, widths = spec.form(table, sets[0]).optimizer.name, [each.dim for each in sets]
    problem = packing_problem(rule, widths, table.layout, spec.allow_coupled_sets)
    if problem:
        raise UserError(f"embedding.tables.{table.name}{problem}")


def _list(features: Sequence[SparseFeature]) -> str:
    return ", ".join(f"{feature.name}: {feature.pooling}" for feature in features)
