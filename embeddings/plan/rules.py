"""Which ways to place a table leave its numbers as they are, and which the machines can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from prismrec.config import UserError
from prismrec.config.embedding import MAX_WIDTH, Kernel
from prismrec.config.placement import COLUMN_KINDS, KINDS, ROW_WISE_STATE, refused_kinds
from prismrec.config.sequence_tables import SEQUENCE_KINDS
from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.communication import refused_by_communication
from prismrec.embeddings.memory import block_bytes
from prismrec.embeddings.plan.expand import HOST_KINDS, even_widths
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import DENSE, Cut
from prismrec.embeddings.sets import EmbeddingSpec

FUSED = "fused"
UVM_KERNELS: tuple[Kernel, ...] = ("fused_uvm_caching", "fused_uvm")
"""Kernels of tables in host memory, the faster one first."""

LEAST_CUT_BYTES = 64 << 20
"""Weights from which on the planner cuts a table's columns of its own accord."""

_PARTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of strips that the search tries for a table."""


def impossible_kinds(
    physical: PhysicalTable, spec: EmbeddingSpec, placement: Placement
) -> dict[str, str]:
    """Kinds that a table cannot take, with the reason, by kind.

    Args:
        physical: the table.
        spec: what the tables are.
        placement: the machines.
    """
    form, table = physical.form, physical.table
    refused = refused_kinds(form.optimizer, form.data_type, may_couple=spec.allow_coupled_sets)
    if table.rows == 1 and form.optimizer.name in ROW_WISE_STATE:
        refused.setdefault(
            "grid",
            f"TorchRec cannot cut the one number that {form.optimizer.name} keeps for one row",
        )
    if not placement.has_hosts:
        for kind in HOST_KINDS:
            refused.setdefault(
                kind,
                "it needs the same number of ranks on every machine, and there are "
                f"{placement.world_size} ranks with {placement.local_world_size} on the first",
            )
    for kind, reason in refused_by_communication(spec.communication).items():
        refused.setdefault(kind, reason)
    for kind in KINDS:
        if table.is_managed and kind != "row_wise":
            refused[kind] = "a table that gives its rows to ids as they come is cut by rows only"
        elif not physical.is_pooled and kind not in SEQUENCE_KINDS:
            refused.setdefault(kind, "a sequence looks the table up, whose vectors are not pooled")
        elif is_spread(physical) and kind not in COLUMN_KINDS:
            refused.setdefault(kind, "layout = 'spread' cuts the table between its sets")
        elif table.kernel in UVM_KERNELS and kind == "data_parallel":
            refused.setdefault(kind, f"kernel = '{table.kernel}' is for fused tables only")
    return refused


def is_spread(physical: PhysicalTable) -> bool:
    """Whether a table is cut between its sets."""
    return physical.table.layout == "spread" and len(physical.slices) > 1


def check_kernel(physical: PhysicalTable, placement: Placement) -> None:
    """Refuse a kernel that the device has not.

    Raises:
        UserError: naming those that it has.
    """
    kernel = physical.table.kernel
    if kernel in UVM_KERNELS and placement.device != "cuda":
        raise UserError(
            f"embedding.tables.{physical.table.name}: kernel = '{kernel}' keeps a table in the host "
            "memory behind a CUDA device, and the tables of this run are on CPU, where all of them "
            "are in host memory; use kernel = 'auto' or 'fused'"
        )


def check_ways(spec: EmbeddingSpec, placement: Placement) -> None:
    """Refuse tables that could be placed in no way, whatever the memory.

    Args:
        spec: what the tables are, every layout chosen.
        placement: the machines.

    Raises:
        UserError: naming the first such table, what rules its placement out, and what is left.
    """
    for physical in physical_tables(spec):
        ways(physical, spec, placement, in_host_memory=False)


def ways(
    physical: PhysicalTable, spec: EmbeddingSpec, placement: Placement, *, in_host_memory: bool
) -> list[Cut]:
    """Every way to place a table that the recipe, the rules and the machines leave.

    Args:
        physical: the table.
        spec: what the tables are.
        placement: the machines.
        in_host_memory: offer the kernels for host memory to tables whose kernel is `auto`.

    Raises:
        UserError: none is left.
    """
    check_kernel(physical, placement)
    found = []
    for kind in _kinds(physical, spec, placement):
        kernels = [DENSE] if kind == "data_parallel" else _kernels(physical, placement)
        if in_host_memory and physical.table.kernel == "auto" and kind != "data_parallel":
            kernels += host_kernels(physical) if placement.device == "cuda" else ()
        for kernel in kernels:
            found += [Cut(kind, kernel, widths) for widths in _widths(physical, kind, placement)]
    if not found:
        raise _too_wide(physical)
    return found


def host_kernels(physical: PhysicalTable) -> tuple[str, ...]:
    """Kernels that keep a table in host memory; rows that change owners must not lie in a cache."""
    return ("fused_uvm",) if physical.table.is_managed else UVM_KERNELS


def _kinds(physical: PhysicalTable, spec: EmbeddingSpec, placement: Placement) -> list[str]:
    refused = impossible_kinds(physical, spec, placement)
    kind, left = physical.table.sharding, [each for each in KINDS if each not in refused]
    if kind in refused or not left:
        form = physical.form
        reason = refused[kind] if kind in refused else "; ".join(dict.fromkeys(refused.values()))
        raise UserError(
            f"embedding.tables.{physical.table.name}: sharding = '{kind}' is not possible with "
            f"{form.optimizer.name} and {form.data_type}: {reason}; use "
            + (" or ".join(f"'{each}'" for each in left) or "another layout or optimizer")
        )
    if kind != "auto":
        return [kind]
    if placement.world_size == 1:  # there is no one to share a table with
        alone: list[str] = [
            each for each in ("table_wise", "row_wise", "column_wise") if each in left
        ]
        return [each for each in alone if _widths(physical, each, placement)][:1]
    if placement.num_hosts == 1 or placement.local_world_size == 1:  # other kinds do the same
        left = [each for each in left if each not in HOST_KINDS]
    return left


def _kernels(physical: PhysicalTable, placement: Placement) -> list[str]:
    kernel = physical.table.kernel
    return [kernel] if kernel in UVM_KERNELS else [FUSED]


def _widths(physical: PhysicalTable, kind: str, placement: Placement) -> list[tuple[int, ...]]:
    """Widths of the strips that a table may be cut into under a kind."""
    width = physical.width
    if kind not in COLUMN_KINDS:
        return [(width,)] if width <= MAX_WIDTH else []
    places = {
        "column_wise": placement.world_size,
        "table_column_wise": placement.local_world_size,
        "grid": placement.num_hosts,
    }[kind]
    if is_spread(physical):
        return [set_strips([stop - start for start, stop in physical.slices.values()], places)]
    if physical.table.sharding == "auto" and width <= MAX_WIDTH and _is_small(physical):
        return []  # every strip has the ids sent again, which TorchRec's estimate leaves out
    if not physical.is_pooled:  # TorchRec cuts all tables of a collection alike
        count = next(each for each in range(places, 0, -1) if (width // 4) % each == 0)
        return [even_widths(width, count)] if width // count <= MAX_WIDTH else []
    units, fewest = width // 4, -(-width // MAX_WIDTH)
    if fewest > places:  # strips that share a rank must be equally wide, see `set_strips`
        fewest = next(each for each in range(fewest, units + 1) if units % each == 0)
    most = max(fewest, min(places, units))
    parts = [each for each in _PARTS if fewest <= each <= most]
    if fewest > 1 or not parts:  # a table that must be cut, or that has no one to share it with
        parts.insert(0, fewest)
    if most > 1 and physical.table.sharding != "auto" and most <= _PARTS[-1]:
        parts.append(most)
    return [even_widths(width, each) for each in dict.fromkeys(parts)]


def _is_small(physical: PhysicalTable) -> bool:
    form = physical.form
    need = block_bytes(form.optimizer.name, form.data_type, physical.table.rows, physical.width)
    return need.weights < LEAST_CUT_BYTES


def set_strips(sets: Sequence[int], places: int) -> tuple[int, ...]:
    """Strips of a table that is cut between its sets.

    Strips of one table on one rank must be equally wide, or TorchRec takes them for that. So where
    there are fewer ranks than sets of unequal width, the narrowest neighbours go together; where
    that would be wider than the kernels hold, sets are cut into equal parts.

    >>> set_strips((16, 8, 4), 3), set_strips((16, 8, 4), 2), set_strips((8, 8, 8), 2)
    ((16, 8, 4), (16, 12), (8, 8, 8))
    >>> set_strips((512, 512, 256), 1)
    (256, 256, 256, 256, 256)

    Args:
        sets: width of each set.
        places: ranks, or groups of ranks, that may each hold another strip.
    """
    widths = list(sets)
    while len(widths) > places and len(set(widths)) > 1:
        pairs = [left + right for left, right in pairwise(widths)]
        narrowest = pairs.index(min(pairs))
        if pairs[narrowest] > MAX_WIDTH:
            part = math.gcd(*sets)
            return (part,) * (sum(sets) // part)
        widths[narrowest : narrowest + 2] = [pairs[narrowest]]
    return tuple(widths)


def _too_wide(physical: PhysicalTable) -> UserError:
    return UserError(
        f"embedding.tables.{physical.table.name}: sharding = '{physical.table.sharding}' leaves rows "
        f"of width {physical.width}, over {MAX_WIDTH}; use 'column_wise', or narrower sets"
    )
