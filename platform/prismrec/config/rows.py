"""Which sets of a recipe lie in one row of a table, as far as the recipe alone tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prismrec.config.data import Lookup
from prismrec.config.embedding import (
    DataType,
    EmbeddingSection,
    Layout,
    SetOptions,
    TableOptimizer,
    TableOptions,
)


@dataclass(frozen=True, slots=True)
class Row:
    """Sets of one form on one table.

    Args:
        table: name of the table.
        options: those of the table, the defaults if it has none.
        layout: the table's or everyone's.
        sets: the sets, in the order of the recipe.
        data_type: type of their weights.
        optimizer: of all of them, with its learning rate.
    """

    table: str
    options: TableOptions
    layout: Layout
    sets: tuple[SetOptions, ...]
    data_type: DataType
    optimizer: TableOptimizer

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each set."""
        return tuple(each.dim for each in self.sets)


_Form = tuple[DataType, str | None, TableOptimizer, str]


def rows_of(
    section: EmbeddingSection, features: Sequence[Lookup], linear: SetOptions | None
) -> Iterator[Row]:
    """The rows of every table; where the layout is `auto`, those of the packed one.

    Args:
        section: `[embedding]`.
        features: those of the recipe that are looked up.
        linear: the set of first-order weights, for a model that has them.
    """
    tables: dict[str, list[Lookup]] = {}
    for feature in features:
        tables.setdefault(feature.table_name, []).append(feature)
    sets = [*section.resolved_sets, *([linear] if linear is not None else [])]
    for table, its_features in tables.items():
        options = section.tables.get(table, TableOptions())
        layout = options.layout or section.layout
        poolings = {feature.pooling for feature in its_features}
        pooling = poolings.pop() if len(poolings) == 1 else None
        forms: dict[_Form, list[SetOptions]] = {}
        for each in sets:
            if any(each.covers(feature.name) for feature in its_features):
                apart = each.name if layout == "separate" else ""
                form = (*_form(section, options, each, pooling), apart)
                forms.setdefault(form, []).append(each)
        for (data_type, _, optimizer, _), together in forms.items():
            yield Row(table, options, layout, tuple(together), data_type, optimizer)


def _form(
    section: EmbeddingSection, options: TableOptions, each: SetOptions, pooling: str | None
) -> tuple[DataType, str | None, TableOptimizer]:
    """What sets of a table must have alike to share its rows.

    Only the data tell how features pool that have single ids, so that a set without a pooling of
    its own may be found apart from others where it is not.
    """
    optimizer = each.optimizer or options.optimizer or section.optimizer
    rate = each.learning_rate or (None if each.optimizer else options.learning_rate)
    return (
        each.data_type or options.data_type or section.data_type,
        each.pooling or pooling,
        optimizer.model_copy(update={"learning_rate": rate}) if rate else optimizer,
    )


def once_for_all(found: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Each problem once, with the tables that have it behind it.

    Args:
        found: problem and table.
    """
    tables: dict[str, list[str]] = {}
    for problem, table in found:
        named = tables.setdefault(problem, [])
        if table not in named:
            named.append(table)
    for problem, named in tables.items():
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        yield f"{problem} (table '{named[0]}'{more})"
