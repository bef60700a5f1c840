"""The plan of all tables: the ways that are left to each, their prices, the search, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.plan.expand import TablePlace, strips
from prismrec.embeddings.plan.lines import Line, line_of
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Option, Progress, price
from prismrec.embeddings.plan.rules import ways
from prismrec.embeddings.plan.search import best_layout, least_memory
from prismrec.embeddings.plan.why import reason
from prismrec.embeddings.sets import EmbeddingSpec


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """One physical table and what was chosen for it.

    Args:
        physical: the table.
        option: the chosen way with its price.
        place: its ranks.
        why: why this way, in a few words.
    """

    physical: PhysicalTable
    option: Option
    place: TablePlace
    why: str

    def line(self) -> Line:
        """The same as JSON-able facts."""
        ranks = self.option.ranks
        return line_of(self.place, self.physical) | {
            "buffer_bytes": ranks * sum(piece.buffers for piece in self.option.pieces),
            "milliseconds": self.option.slowest,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every table goes, and what each rank spends on it.

    Args:
        placement: the machines.
        tables: one for every physical table.
        ms: (world_size,) milliseconds of a step.
        device: (world_size,) bytes on the device; 0 on CPU.
        host: (world_size,) bytes of host memory, the copy that a checkpoint takes included.
    """

    placement: Placement
    tables: tuple[PlannedTable, ...]
    ms: NDArray[np.float64]
    device: NDArray[np.int64]
    host: NDArray[np.int64]

    @property
    def step_ms(self) -> float:
        """Milliseconds that a step's lookups, exchanges and updates take on the busiest rank."""
        return float(self.ms.max())

    @property
    def over_device(self) -> int:
        """Bytes by which the fullest device is over its room; negative where there is some left."""
        return int(self.device.max()) - self.placement.device_room

    @property
    def over_host(self) -> int:
        """The same for host memory."""
        return int(self.host.max()) - self.placement.host_room

    @property
    def fits(self) -> bool:
        """Whether every rank has the memory."""
        return self.over_device <= 0 and self.over_host <= 0

    def lines(self) -> list[Line]:
        """The plan as JSON-able facts, one line for each table."""
        return [table.line() for table in self.tables]


def find_plan(spec: EmbeddingSpec, placement: Placement, progress: Progress | None = None) -> Plan:
    """The plan whose busiest rank ends first; where none fits the memory, the one nearest to it.

    Tables whose kernel is `auto` lie in device memory if all fit there, and only otherwise, where the
    plan says so, in host memory behind it.

    Args:
        spec: what the tables are, every layout chosen.
        placement: the machines.
        progress: told now and then how much is done of how much.

    Raises:
        UserError: a table can take none of the ways that the recipe leaves.
    """
    plan = _searched(spec, placement, progress, in_host_memory=False)
    is_open = any(table.kernel == "auto" for table in spec.tables)
    if plan.fits or placement.device != "cuda" or not is_open:
        return plan
    spilled = _searched(spec, placement, progress, in_host_memory=True)
    return spilled if spilled.fits else plan


def _searched(
    spec: EmbeddingSpec, placement: Placement, progress: Progress | None, *, in_host_memory: bool
) -> Plan:
    tables = {physical.name: physical for physical in physical_tables(spec)}
    cuts = {
        name: ways(physical, spec, placement, in_host_memory=in_host_memory)
        for name, physical in tables.items()
    }
    priced = price(cuts, tables, spec, placement, _part(progress, 0))
    choices = list(priced.values())
    layout = best_layout(choices, placement, _part(progress, 1))
    fits = layout is not None
    if layout is None:
        layout = least_memory(choices, placement)
    filled = layout.cluster(choices, placement)
    planned = []
    for physical, options, index, ranks in zip(
        tables.values(), choices, layout.chosen, layout.ranks, strict=True
    ):
        option = options[index]
        place = TablePlace(
            name=physical.name,
            kind=option.cut.kind,
            kernel=option.cut.kernel,
            rows=physical.table.rows,
            strips=strips(option.cut.widths, ranks),
            cache_load_factor=spec.cache_load_factor
            if option.cut.kernel == "fused_uvm_caching"
            else None,
        )
        why = reason(physical, option, options, placement) if fits else "takes the least memory"
        planned.append(PlannedTable(physical, option, place, why))
    return Plan(
        placement,
        tuple(planned),
        filled.ms,
        placement.device_room - filled.device,
        placement.host_room - filled.host,
    )


def _part(progress: Progress | None, half: int) -> Progress | None:
    """Progress of the first or the second half of the work."""
    if progress is None:
        return None
    return lambda done, total: progress(half * total + done, 2 * total)
