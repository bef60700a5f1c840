"""What to change first when the tables do not fit: who is short of what, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prismrec.config import UserError
from prismrec.config.embedding import ShardingKind
from prismrec.config.placement import COLUMN_KINDS
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.memory import block_bytes
from prismrec.embeddings.plan.find import Plan, PlannedTable, find_plan
from prismrec.embeddings.plan.placement import Placement
from prismrec.embeddings.plan.price import Progress
from prismrec.embeddings.plan.rules import UVM_KERNELS, impossible_kinds
from prismrec.embeddings.plan.sizes import size
from prismrec.embeddings.sets import EmbeddingSpec, TableSpec

_NO_INT8 = (
    "no kernel trains int8 tables, on CPU or on CUDA; export.table_type = 'int8' makes the registered "
    "model's tables small, not those in training"
)
LEAST_RESERVED = 0.05
"""Share of a rank's memory that dense weights, batches and buffers are left in any case."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """The rank that is shortest of memory.

    Args:
        rank: which one.
        memory: "device" or "host".
        over: bytes that it lacks.
        table: name of the table that takes most of it there.
        table_bytes: what that table takes there.
    """

    rank: int
    memory: str
    over: int
    table: str
    table_bytes: int

    def sentence(self) -> str:
        """The same in words."""
        return (
            f"rank {self.rank} lacks {size(self.over)} of {self.memory} memory, where table "
            f"'{self.table}' takes most, {size(self.table_bytes)}"
        )


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that was tried on tables that do not fit.

    Args:
        change: what kind of change.
        setting: the recipe's keys that make it, empty where there is nothing to set.
        over: bytes that the shortest rank then still lacks, 0 where all fits, None if not tried.
        milliseconds: of the step's tables with it, where all fits.
        note: what else there is to say.
    """

    change: str
    setting: str = ""
    over: int | None = None
    milliseconds: float | None = None
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether the tables fit with it."""
        return self.over == 0

    def line(self) -> dict[str, Any]:
        """The same as JSON-able facts."""
        return {
            "change": self.change,
            "setting": self.setting,
            "fits": self.fits,
            "over_bytes": self.over,
            "milliseconds": self.milliseconds,
            "note": self.note,
        }


def shortage(plan: Plan) -> Shortage:
    """Who is short of most memory under a plan that does not fit."""
    on_device = plan.over_device > plan.over_host
    used = plan.device if on_device else plan.host
    rank = int(np.argmax(used))

    def held(table: PlannedTable) -> int:
        return sum(
            piece.device if on_device else piece.host
            for piece, strip in zip(table.option.pieces, table.place.strips, strict=True)
            if strip.rank <= rank < strip.rank + strip.ranks
        )

    worst = max(plan.tables, key=held)
    return Shortage(
        rank=rank,
        memory="device" if on_device else "host",
        over=max(plan.over_device, plan.over_host),
        table=worst.physical.table.name,
        table_bytes=held(worst),
    )


def remedies(plan: Plan, spec: EmbeddingSpec, progress: Progress | None = None) -> Iterator[Remedy]:
    """What would help, in the order in which to try it; each is worked out when it is asked for.

    Args:
        plan: one that does not fit.
        spec: what its tables are.
        progress: told of every search what `find_plan` tells.
    """
    trial = _Trial(plan, spec, progress)
    yield _reservation(trial)
    yield _host_memory(trial)
    yield _column_split(trial)
    yield _half(trial)
    yield Remedy("int8", note=_NO_INT8)


def misfit(plan: Plan, spec: EmbeddingSpec, tried: Iterable[Remedy] | None = None) -> UserError:
    """The error of tables that do not fit, with the first setting that would help.

    Args:
        plan: the nearest to one that fits.
        spec: what its tables are.
        tried: what `remedies` gave, where that is known already.
    """
    placement = plan.placement
    lead = (
        f"the tables ({size(table_bytes(spec))} with optimizer state, and as much again in host "
        f"memory for a checkpoint's copy) do not fit {placement.world_size} ranks of "
        f"{size(placement.memory)}, {placement.reserved:.0%} of which is kept for the rest: "
        f"{shortage(plan).sentence()}; "
    )
    found = remedies(plan, spec) if tried is None else tried
    first = next((remedy for remedy in found if remedy.fits), None)
    if first is not None:
        return UserError(f"{lead}they fit with {first.setting}")
    return UserError(f"{lead}use {ranks_needed(plan)} ranks or more, fewer rows or narrower sets")


def table_bytes(spec: EmbeddingSpec) -> int:
    """Bytes of all weights and optimizer states, each table counted once."""
    return sum(
        block_bytes(
            physical.form.optimizer.name,
            physical.form.data_type,
            physical.table.rows,
            physical.width,
        ).total
        for physical in physical_tables(spec)
    )


def ranks_needed(plan: Plan) -> int:
    """The fewest ranks of this size that could hold what the plan's ranks hold together."""
    placement, shares = plan.placement, [int(plan.host.sum()) / max(1, plan.placement.host_room)]
    if placement.device_room:
        shares.append(int(plan.device.sum()) / placement.device_room)
    return max(placement.world_size + 1, math.ceil(max(shares)))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Tables that do not fit, to be planned again with something changed."""

    plan: Plan
    spec: EmbeddingSpec
    progress: Progress | None

    def run(
        self,
        change: str,
        setting: str,
        *,
        spec: EmbeddingSpec | None = None,
        placement: Placement | None = None,
    ) -> Remedy:
        """What comes of other tables or other machines."""
        try:
            plan = find_plan(spec or self.spec, placement or self.plan.placement, self.progress)
        except UserError as error:
            return Remedy(change, note=error.message)
        if plan.fits:
            return Remedy(change, setting, 0, plan.step_ms)
        return Remedy(change, setting, max(plan.over_device, plan.over_host))

    def with_tables(self, change: Callable[[TableSpec], TableSpec]) -> EmbeddingSpec:
        """The same tables, each changed."""
        return replace(self.spec, tables=tuple(change(table) for table in self.spec.tables))


def _reservation(trial: _Trial) -> Remedy:
    change, plan, placement = "tighter reservation", trial.plan, trial.plan.placement
    host = placement.memory if placement.host_memory is None else placement.host_memory
    needed = int(plan.host.max()) / host
    if placement.device_room:
        needed = max(needed, int(plan.device.max()) / placement.memory)
    left = math.floor(100 * (1 - needed)) / 100
    if left < LEAST_RESERVED:
        left = min(LEAST_RESERVED, placement.reserved)
    setting = f"embedding.reserved_memory = {left:g}"
    found = trial.run(change, setting, placement=replace(placement, reserved=left))
    return (
        found if found.fits else replace(found, note="less would leave the rest of a run nothing")
    )


def _host_memory(trial: _Trial) -> Remedy:
    # A table that gives its rows to ids as they come may lie in host memory, not behind a cache.
    is_managed = any(table.is_managed for table in trial.spec.tables)
    change, kernel = "UVM caching", "fused_uvm" if is_managed else UVM_KERNELS[0]
    if trial.plan.placement.device != "cuda":
        return Remedy(change, note="the tables of a CPU run are in host memory already")

    def fused(kind: ShardingKind) -> ShardingKind:
        return "auto" if kind == "data_parallel" else kind

    spec = trial.with_tables(
        lambda table: replace(table, kernel=kernel, sharding=fused(table.sharding))
    )
    return trial.run(change, f"embedding.kernel = '{kernel}'", spec=spec)


def _column_split(trial: _Trial) -> Remedy:
    change, plan, name = "column split", trial.plan, shortage(trial.plan).table
    fixed = [t.name for t in trial.spec.tables if t.sharding not in ("auto", *COLUMN_KINDS)]
    for each in plan.tables:
        reasons = impossible_kinds(each.physical, trial.spec, plan.placement)
        if each.physical.table.name == name and "column_wise" in reasons:
            return Remedy(change, note=f"table '{name}': {reasons['column_wise']}")
    if not fixed:
        return Remedy(change, note="tried already, the recipe leaves the kinds to the planner")
    if name in fixed:
        spec = trial.with_tables(
            lambda table: replace(table, sharding="column_wise") if table.name == name else table
        )
        setting = f"embedding.tables.{name}.sharding = 'column_wise'"
        found = trial.run(change, setting, spec=spec)
        if found.fits:
            return found
    spec = trial.with_tables(
        lambda table: table if table.is_managed else replace(table, sharding="auto")
    )
    return trial.run(change, "embedding.sharding = 'auto', and of every table", spec=spec)


def _half(trial: _Trial) -> Remedy:
    change = "fp16"
    if all(each.physical.form.data_type == "fp16" for each in trial.plan.tables):
        return Remedy(change, note="all tables are fp16 already")
    tables = trial.with_tables(lambda table: replace(table, data_type=None)).tables
    sets = tuple(replace(each, data_type=None) for each in trial.spec.sets)
    spec = replace(trial.spec, tables=tables, sets=sets, data_type="fp16")
    setting = "embedding.data_type = 'fp16', and of every table and set"
    return trial.run(change, setting, spec=spec)
