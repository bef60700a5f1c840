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
    COUPLING_OPTIMIZERS,
    MAX_WIDTH,
    Communication,
    DataType,
    EmbeddingSection,
    Kernel,
    Layout,
    ShardingKind,
    TableOptimizer,
    TableOptions,
)
from prismrec.config.errors import nearest
from prismrec.data.schema import DataSchema

LINEAR = "linear"
"""Name of the set that holds first-order weights: column t is the weight for task t."""

ROW_WISE_STATE = ("rowwise_adagrad", "partial_rowwise_adam")
"""Optimizers that keep one number per row, for all columns of a shard."""


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
        """Whether a feature has a vector in this set."""
        return self.features is None or feature in self.features


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One logical table: the vectors of one id space in every set that covers its features.

    Args:
        name: unique name.
        rows: number of rows; the last one is the row of unknown ids.
        features: features that look ids up here.
        pooling: "sum" or "mean", one for all its features.
        layout: how its sets lie in memory; "auto" leaves it to the planner.
        sharding: where its parts go; "auto" leaves it to the planner.
        optimizer: rule and hyper-parameters of its optimizer.
        kernel: which memory holds it; "auto" leaves it to the planner.
        data_type: storage type, None for everyone's.
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
            pooling=embedding_set.pooling or table.pooling,
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
        sets.append(EmbeddingSet(LINEAR, -(-len(recipe.tasks) // 4) * 4, 0.0))
    spec = EmbeddingSpec(
        sets=tuple(sets),
        tables=tuple(_tables(recipe, schema)),
        fields=tuple(feature.name for feature in recipe.features.sparse),
        data_type=section.data_type,
        is_weighted=any(feature.weights for feature in recipe.features.sparse),
        seed=recipe.seed,
        allow_coupled_sets=section.allow_coupled_sets,
        communication=section.communication,
        cache_load_factor=section.cache_load_factor,
    )
    _check_covered(spec)
    for table in spec.tables:
        for sets_packed in packed_sets(spec, table):
            _check_packed(spec, table, sets_packed)
    return spec


def packed_sets(spec: EmbeddingSpec, table: TableSpec) -> list[tuple[EmbeddingSet, ...]]:
    """The sets of a table that lie in one row, group by group, by the table's layout.

    Sets that are stored, pooled or updated differently cannot share a row, whatever the layout.
    """
    sets = spec.sets_of(table)
    if table.layout == "separate":
        return [(each,) for each in sets]
    groups: dict[SetForm, list[EmbeddingSet]] = {}
    for each in sets:
        groups.setdefault(spec.form(table, each), []).append(each)
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


def _check_covered(spec: EmbeddingSpec) -> None:
    for index, each in enumerate(spec.sets):
        for feature in each.features or ():
            if feature not in spec.fields:
                raise UserError(
                    f"embedding.sets[{index}].features: no sparse feature is called "
                    f"'{feature}'; {nearest(feature, spec.fields)}"
                )
        if not spec.fields_of(each):
            raise UserError(
                f"embedding.sets[{index}].features: set '{each.name}' covers no feature; name at "
                "least one or leave `features` out"
            )
    for feature in spec.fields:
        if spec.sets and not any(each.covers(feature) for each in spec.sets):
            raise UserError(
                f"embedding.sets: no set covers feature '{feature}'; add it to the `features` of a "
                "set or remove it from features.sparse"
            )


def _tables(recipe: Recipe, schema: DataSchema) -> list[TableSpec]:
    section = recipe.embedding
    by_table: dict[str, list[int]] = {}
    for index, feature in enumerate(recipe.features.sparse):
        by_table.setdefault(feature.table_name, []).append(index)
    tables = []
    for name, indices in by_table.items():
        features = [recipe.features.sparse[index] for index in indices]
        counts = {
            f.name: schema.column(f.source, ("id", "ids"), f"features.sparse[{i}]").num_ids or 1
            for i, f in zip(indices, features, strict=True)
        }
        poolings = {
            f.pooling for f in features if schema.columns[f.source].kind == "ids" or f.weights
        }
        if len(poolings) > 1:
            raise UserError(
                f"embedding.tables.{name}: its features disagree on pooling "
                f"({_list(features)}); use one pooling or two tables"
            )
        options = section.tables.get(name)
        rows = (options.rows if options else None) or max(counts.values())
        tables.append(
            TableSpec(
                name=name,
                rows=rows + 1,
                features=tuple(f.name for f in features),
                pooling=poolings.pop() if poolings else "sum",
                layout=(options and options.layout) or section.layout,
                sharding=(options and options.sharding) or section.sharding,
                optimizer=_optimizer(section, options),
                kernel=(options and options.kernel) or section.kernel,
                data_type=options.data_type if options else None,
            )
        )
    return tables


def _optimizer(section: EmbeddingSection, options: TableOptions | None) -> TableOptimizer:
    """The optimizer of one table: its own or everyone's, with its own learning rate if it has one."""
    chosen = (options and options.optimizer) or section.optimizer
    if options is None or options.learning_rate is None:
        return chosen
    return chosen.model_copy(update={"learning_rate": options.learning_rate})


def _check_packed(spec: EmbeddingSpec, table: TableSpec, sets: tuple[EmbeddingSet, ...]) -> None:
    """Refuse sets in one row that would change each other's steps, or a row that is too wide."""
    rule = spec.form(table, sets[0]).optimizer.name
    if table.layout == "auto" or len(sets) == 1:
        return
    if rule in COUPLING_OPTIMIZERS and not spec.allow_coupled_sets:
        raise UserError(
            f"embedding.tables.{table.name}: {rule} scales a row as a whole, "
            "which couples its packed sets; use layout = 'separate', optimizer.name = 'adagrad', "
            "or embedding.allow_coupled_sets = true"
        )
    width = sum(each.dim for each in sets)
    if table.layout == "packed" and width > MAX_WIDTH:
        raise UserError(
            f"embedding.tables.{table.name}.layout: packing {len(sets)} sets makes rows of width "
            f"{width}, over {MAX_WIDTH}; use layout = 'spread' or 'separate', or narrower sets"
        )


def _list(features: Sequence[SparseFeature]) -> str:
    return ", ".join(f"{feature.name}: {feature.pooling}" for feature in features)
