"""How the sets of a table lie in memory, where the recipe leaves that to the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prismrec.config.embedding import COUPLING_OPTIMIZERS, MAX_WIDTH, Layout
from prismrec.config.placement import COLUMN_KINDS, refused_kinds
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.memory import block_bytes
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.rules import impossible_kinds
from prismrec.embeddings.plan.sizes import size
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec, packed_sets

Choice = tuple[Layout, str]
"""A layout, and why."""


def choose_layouts(spec: EmbeddingSpec, placement: Placement) -> EmbeddingSpec:
    """The same tables with a layout for those that had `auto`.

    Args:
        spec: what the tables are.
        placement: the machines.
    """
    return with_layouts(spec, layout_choices(spec, placement))


def with_layouts(spec: EmbeddingSpec, chosen: Mapping[str, Choice]) -> EmbeddingSpec:
    """The same tables with the chosen layouts, by table."""
    tables = [
        replace(table, layout=chosen[table.name][0]) if table.name in chosen else table
        for table in spec.tables
    ]
    return replace(spec, tables=tuple(tables))


def layout_choices(spec: EmbeddingSpec, placement: Placement) -> dict[str, Choice]:
    """By table whose layout is `auto`: the layout, and why.

    Args:
        spec: what the tables are.
        placement: the machines.
    """
    return {
        table.name: _choice(spec, table, placement)
        for table in spec.tables
        if table.layout == "auto"
    }


def _choice(spec: EmbeddingSpec, table: TableSpec, placement: Placement) -> Choice:
    groups = packed_sets(spec, table)
    several = [group for group in groups if len(group) > 1]
    if not several:
        return "packed", "no two of its sets can share a row"
    rules = {spec.form(table, group[0]).optimizer.name for group in several}
    coupling = sorted(rules & set(COUPLING_OPTIMIZERS))
    if coupling and not spec.allow_coupled_sets:
        return "separate", f"{coupling[0]} scales a row as a whole and would couple its sets"
    width = max(sum(each.dim for each in group) for group in several)
    if width > MAX_WIDTH:
        if _can_spread(spec, table, several):
            return "spread", f"packed rows of width {width} are over {MAX_WIDTH}"
        return "separate", f"packed rows of width {width} are over {MAX_WIDTH}"
    largest = max(_bytes(spec, table, group) for group in several)
    room = _room(placement)
    if largest > room and placement.world_size > 1 and _can_spread(spec, table, several):
        if _cuts_rows(spec, table, placement):
            return (
                "packed",
                f"{size(largest)} are too much for one rank, and can be shared out as a whole",
            )
        widest = max(_bytes(spec, table, (each,)) for group in several for each in group)
        if widest <= room:
            return (
                "spread",
                f"{size(largest)} are too much for one rank, its sets one by one are not",
            )
    return "packed", "one lookup and one update for all of its sets"


def _room(placement: Placement) -> int:
    """Bytes of weights and state that one rank can hold, with the copy that a checkpoint takes."""
    if placement.device_room:
        return min(placement.device_room, placement.host_room)
    return placement.host_room // 2


def _can_spread(
    spec: EmbeddingSpec, table: TableSpec, groups: list[tuple[EmbeddingSet, ...]]
) -> bool:
    """Whether a table may be cut between its sets."""
    if table.is_managed or table.behaviours or table.sharding not in ("auto", *COLUMN_KINDS):
        return False
    forms = [spec.form(table, group[0]) for group in groups]
    refused = [
        refused_kinds(form.optimizer, form.data_type, may_couple=spec.allow_coupled_sets)
        for form in forms
    ]
    return not any("column_wise" in each for each in refused)


def _cuts_rows(spec: EmbeddingSpec, table: TableSpec, placement: Placement) -> bool:
    """Whether a packed table may be cut by rows, which sends each id to one rank only."""
    packed = replace(spec, tables=(replace(table, layout="packed"),))
    return table.sharding == "auto" and not any(
        "row_wise" in impossible_kinds(physical, packed, placement)
        for physical in physical_tables(packed)
    )


def _bytes(spec: EmbeddingSpec, table: TableSpec, sets: tuple[EmbeddingSet, ...]) -> int:
    """Bytes of some sets of a table in one row, with optimizer state."""
    form = spec.form(table, sets[0])
    width = sum(each.dim for each in sets)
    return block_bytes(form.optimizer.name, form.data_type, table.rows, width).total
