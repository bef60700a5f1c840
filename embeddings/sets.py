"""What the embedding tables are, whatever their layout and placement: sets x features.

Notation: B batch, N fields (features), M sets, d_m width of set m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prismrec.config import Recipe, UserError
from prismrec.config.data import SparseFeature
from prismrec.config.embedding import (
    COUPLING_OPTIMIZERS,
    MAX_WIDTH,
    EmbeddingSection,
    ShardingKind,
    TableOptimizer,
    TableOptions,
)
from prismrec.data.schema import DataSchema

LINEAR = "linear"
"""Name of the set that holds first-order weights: column t is the weight for task t."""

ROW_WISE_STATE = ("rowwise_adagrad", "partial_rowwise_adam")
"""Optimizers that keep one number per row, for all columns of a shard."""


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """One embedding set.

    Args:
        name: unique name.
        dim: width d_m, a multiple of 4.
        init_std: standard deviation of the initial weights; 0 starts at zero.
    """

    name: str
    dim: int
    init_std: float


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One logical table: the vectors of one id space in every set.

    Args:
        name: unique name.
        rows: number of rows; the last one is the row of unknown ids.
        features: features that look ids up here.
        pooling: "sum" or "mean", one for all its features.
        layout: how its sets lie in memory.
        sharding: where its parts go; "auto" leaves it to the planner.
        optimizer: rule and hyper-parameters of its optimizer.
    """

    name: str
    rows: int
    features: tuple[str, ...]
    pooling: Literal["sum", "mean"]
    layout: Literal["packed", "separate"]
    sharding: ShardingKind
    optimizer: TableOptimizer


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """All sets over all tables.

    Args:
        sets: the embedding sets, in the order of the model's inputs; `linear` last, if any.
        tables: the logical tables.
        fields: features in the order of the model's fields.
        data_type: "fp32" or "fp16" storage.
        is_weighted: whether any feature carries weights.
        seed: seed of the initial weights.
    """

    sets: tuple[EmbeddingSet, ...]
    tables: tuple[TableSpec, ...]
    fields: tuple[str, ...]
    data_type: Literal["fp32", "fp16"]
    is_weighted: bool = False
    seed: int = 1

    def table_of(self, feature: str) -> TableSpec:
        """The table that a feature looks up."""
        return next(table for table in self.tables if feature in table.features)

    def offsets(self) -> dict[str, tuple[int, int]]:
        """First and past-the-last column of each set in a packed row."""
        columns, start = {}, 0
        for each in self.sets:
            columns[each.name] = (start, start + each.dim)
            start += each.dim
        return columns

    @property
    def packed_width(self) -> int:
        """Width of one packed row, sum of d_m."""
        return sum(each.dim for each in self.sets)


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
    sets = [
        EmbeddingSet(s.name, s.dim, s.init_std or section.init_std)
        for s in section.resolved_sets
        if needs_sets
    ]
    if needs_linear:
        sets.append(EmbeddingSet(LINEAR, -(-len(recipe.tasks) // 4) * 4, 0.0))
    tables = _tables(recipe, schema)
    for table in tables:
        _check_coupling(section, table, len(sets))
    width = sum(each.dim for each in sets)
    wide = [t.name for t in tables if t.layout == "packed" and width > MAX_WIDTH]
    if wide:
        raise UserError(
            f"embedding.layout: packing {len(sets)} sets makes rows of width {width}, over "
            f"{MAX_WIDTH} (tables {', '.join(wide)}); use layout = 'separate' or narrower sets"
        )
    return EmbeddingSpec(
        sets=tuple(sets),
        tables=tuple(tables),
        fields=tuple(feature.name for feature in recipe.features.sparse),
        data_type=section.data_type,
        is_weighted=any(feature.weights for feature in recipe.features.sparse),
        seed=recipe.seed,
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
            )
        )
    return tables


def _optimizer(section: EmbeddingSection, options: TableOptions | None) -> TableOptimizer:
    """The optimizer of one table: its own or everyone's, with its own learning rate if it has one."""
    chosen = (options and options.optimizer) or section.optimizer
    if options is None or options.learning_rate is None:
        return chosen
    return chosen.model_copy(update={"learning_rate": options.learning_rate})


def _check_coupling(section: EmbeddingSection, table: TableSpec, num_sets: int) -> None:
    couples = table.optimizer.name in COUPLING_OPTIMIZERS and table.layout == "packed"
    if couples and num_sets > 1 and not section.allow_coupled_sets:
        raise UserError(
            f"embedding.tables.{table.name}: {table.optimizer.name} scales a row as a whole, "
            "which couples its packed sets; use layout = 'separate', optimizer.name = 'adagrad', "
            "or embedding.allow_coupled_sets = true"
        )


def _list(features: Sequence[SparseFeature]) -> str:
    return ", ".join(f"{feature.name}: {feature.pooling}" for feature in features)
