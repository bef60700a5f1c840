"""Ways to place a table that would change its numbers, and those that a recipe asks for."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

from prismrec.config.data import Lookup
from prismrec.config.embedding import (
    EmbeddingSection,
    SetOptions,
    ShardingKind,
    TableOptimizer,
)
from prismrec.config.rows import Row, once_for_all, rows_of

KINDS = tuple(kind for kind in typing.get_args(ShardingKind) if kind != "auto")
"""Ways to place a table, as a recipe calls them."""
COLUMN_KINDS = ("column_wise", "table_column_wise", "grid")
"""Kinds that cut a row."""
ROW_WISE_STATE = ("rowwise_adagrad", "partial_rowwise_adam")
"""Optimizers that keep one number per row, for all columns of a shard."""
PLAIN_RULES = ("sgd", "adagrad", "adam")
"""Optimizers whose plain form, which steps tables that are not fused, trains as the fused one."""


def plain_problem(optimizer: TableOptimizer) -> str | None:
    """Why a table that is not fused cannot be trained by a rule as a fused one would; None if it can."""
    if optimizer.name not in PLAIN_RULES:
        return f"such tables are not fused, and {optimizer.name} has no plain form with its numbers"
    if optimizer.clip is not None:
        return "such tables are not fused, and the gradients of their bags cannot be clipped one by one"
    return None


def refused_kinds(
    optimizer: TableOptimizer, data_type: str, *, may_couple: bool = False
) -> dict[str, str]:
    """Kinds that would change the numbers, with the reason, by kind.

    >>> sorted(refused_kinds(TableOptimizer(name="rowwise_adagrad"), "fp32"))
    ['column_wise', 'data_parallel', 'grid', 'table_column_wise']

    Args:
        optimizer: the table's.
        data_type: storage type of its weights.
        may_couple: allow an accumulator for each row and strip of columns.
    """
    refused = {}
    if optimizer.name in ROW_WISE_STATE:
        for kind in () if may_couple else COLUMN_KINDS:
            refused[kind] = (
                f"{optimizer.name} would keep an accumulator for each row and shard, which "
                "embedding.allow_coupled_sets = true allows"
            )
    if optimizer.name == "lamb":
        for kind in COLUMN_KINDS:
            refused[kind] = "lamb scales each row's step by the norm of the row in its shard"
    if optimizer.max_norm is not None:
        for kind in COLUMN_KINDS:
            refused[kind] = "max_norm would bound the row in each shard, not the whole row"
    plain = plain_problem(optimizer)
    if plain is None and data_type != "fp32":
        plain = "such tables are trained in fp32 only"
    if plain is not None:
        refused["data_parallel"] = plain
    return refused


def placement_problems(
    section: EmbeddingSection, features: Sequence[Lookup], linear: SetOptions | None
) -> Iterator[str]:
    """Why tables cannot lie where the recipe wants them; nothing if they can.

    Args:
        section: `[embedding]`.
        features: those of the recipe that are looked up.
        linear: the set of first-order weights, for a model that has them.
    """
    rows = rows_of(section, features, linear)
    return once_for_all(
        (problem, row.table) for row in rows for problem in _row_problems(section, row)
    )


def _row_problems(section: EmbeddingSection, row: Row) -> Iterator[str]:
    kind = row.options.sharding or section.sharding
    if kind == "auto":
        return
    where = (
        f"embedding.tables.{row.table}.sharding" if row.options.sharding else "embedding.sharding"
    )
    refused = refused_kinds(row.optimizer, row.data_type, may_couple=section.allow_coupled_sets)
    kinds = [each for each in KINDS if each not in refused]
    if kind in refused:
        names = " and ".join(f"'{each.name}'" for each in row.sets)
        yield (
            f"{where}: '{kind}' is not possible with {row.optimizer.name} and {row.data_type}, which "
            f"the {'sets' if len(row.sets) > 1 else 'set'} {names} would have: {refused[kind]}; use "
            + " or ".join(f"'{each}'" for each in kinds)
        )
    elif row.layout == "spread" and len(row.sets) > 1 and kind not in COLUMN_KINDS:
        left = [each for each in kinds if each in COLUMN_KINDS]
        yield (
            f"{where}: '{kind}' keeps a row whole, and layout = 'spread' cuts it between its sets; "
            f"use {' or '.join(repr(each) for each in left)}, or another layout"
        )
    kernel = row.options.kernel or section.kernel
    if kind == "data_parallel" and kernel in ("fused_uvm", "fused_uvm_caching"):
        yield f"{where}: kernel = '{kernel}' is for fused tables, and '{kind}' ones are not; use another"
