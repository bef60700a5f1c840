"""Where every table goes: TorchRec's planner under the rules that keep the numbers the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    PlannerError,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
)
from torchrec.distributed.types import ShardingPlan

from prismrec.config import UserError
from prismrec.config.embedding import MAX_WIDTH, TableOptimizer
from prismrec.config.machine import memory
from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.memory import TableBytes, block_bytes
from prismrec.embeddings.optimizers import moves_absent_rows
from prismrec.embeddings.sets import ROW_WISE_STATE, EmbeddingSpec

RESERVED = 0.15
"""Share of a rank's memory that is left to dense weights, batches and buffers."""

KINDS = ("data_parallel", "table_wise", "column_wise", "row_wise")


class Sharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every kind this package tests, on CPU too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Kinds a table may take."""
        return list(KINDS)


@dataclass(frozen=True, slots=True)
class Placement:
    """The machines that the tables are placed on.

    Args:
        world_size: number of ranks.
        local_world_size: ranks per machine.
        device: "cpu" or "cuda".
        memory: bytes that one rank has on its device.
        batch_size: rows of one rank's batch.
        host_memory: bytes that one rank has on its machine; `memory` if not given.
    """

    world_size: int
    local_world_size: int
    device: str
    memory: int
    batch_size: int
    host_memory: int | None = None

    def topology(self) -> Topology:
        """Ranks and memory as TorchRec's planner takes them, without what is reserved."""
        host = self.memory if self.host_memory is None else self.host_memory
        return Topology(
            world_size=self.world_size,
            local_world_size=self.local_world_size,
            compute_device=self.device,
            hbm_cap=int(self.memory * (1 - RESERVED)) if self.device == "cuda" else 0,
            ddr_cap=int(host * (1 - RESERVED)),
        )


class _TableStorage(ShardEstimator):
    """What a shard occupies: TorchRec's estimate, and what the estimate leaves out.

    That is the optimizer's state, the gradient of a data_parallel table, and the copy of weights
    and state in host memory that a checkpoint takes.

    Args:
        topology: ranks and memory.
        constraints: those of the planner.
        spec: what the tables are.
    """

    def __init__(
        self,
        topology: Topology,
        constraints: dict[str, ParameterConstraints],
        spec: EmbeddingSpec,
    ) -> None:
        self._bare = EmbeddingStorageEstimator(topology=topology, constraints=constraints)
        self._is_cuda = topology.compute_device == "cuda"
        self._optimizers = {
            physical.name: physical.form.optimizer.name for physical in physical_tables(spec)
        }
        self._data_types = {
            physical.name: physical.form.data_type for physical in physical_tables(spec)
        }

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap
    ) -> None:
        """Set the storage of every shard of the options."""
        self._bare.estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            optimizer = self._optimizers[option.name]
            for shard in option.shards:
                assert shard.storage is not None
                need = block_bytes(optimizer, self._data_types[option.name], *shard.size)
                beside = need.state
                if option.sharding_type == "data_parallel":
                    beside += need.weights
                on_device = self._is_cuda and "uvm" not in option.compute_kernel
                shard.storage += Storage(
                    hbm=beside if on_device else 0,
                    ddr=need.total + (0 if on_device else beside),
                )


def refused_kinds(optimizer: TableOptimizer, data_type: str) -> dict[str, str]:
    """Kinds that would change the numbers, with the reason, by kind.

    >>> sorted(refused_kinds(TableOptimizer(name="rowwise_adagrad"), "fp32"))
    ['column_wise', 'data_parallel']
    """
    refused = {}
    if optimizer.name in ROW_WISE_STATE:
        refused["column_wise"] = (
            f"{optimizer.name} would keep an accumulator for each row and shard"
        )
        refused["data_parallel"] = f"{optimizer.name} has no plain form"
    if optimizer.name == "lamb":
        refused["column_wise"] = "lamb scales each row's step by the norm of the row in its shard"
    if moves_absent_rows(optimizer):
        refused["data_parallel"] = (
            "such tables are not fused, and the plain rule moves rows that are not in the batch"
        )
    if data_type != "fp32":
        refused.setdefault("data_parallel", "such tables are trained in fp32 only")
    return refused


def plan_tables(
    model: nn.Module, spec: EmbeddingSpec, placement: Placement, group: dist.ProcessGroup
) -> ShardingPlan:
    """Place every table; all ranks get the plan that rank 0 made.

    Collective: every rank calls it.

    Args:
        model: module that holds the unsharded collection, on the meta device.
        spec: what the tables are.
        placement: ranks, memory and batch.
        group: the process group of all ranks.

    Raises:
        UserError: a recipe's placement would change the numbers, or the tables do not fit.
    """
    constraints = {
        physical.name: _constraint(physical, spec, placement) for physical in physical_tables(spec)
    }
    topology = placement.topology()
    speed = EmbeddingPerfEstimatorFactory.create(
        DEFAULT_PERF_ESTIMATOR, topology=topology, constraints=constraints
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=placement.batch_size,
        enumerator=EmbeddingEnumerator(
            topology=topology,
            batch_size=placement.batch_size,
            constraints=constraints,
            estimator=[speed, _TableStorage(topology, constraints, spec)],
        ),
        storage_reservation=FixedPercentageStorageReservation(0),  # the topology is without it
        constraints=constraints,
    )
    outcome = _of_first(planner, model, group)
    if isinstance(outcome, str):
        raise UserError(
            f"the tables ({_size(table_bytes(spec))} with optimizer state, and as much again in host "
            f"memory for a checkpoint's copy) do not fit {placement.world_size} ranks of "
            f"{_size(placement.memory)}, {RESERVED:.0%} of which is kept for the rest: use more "
            f"workers, fewer rows, narrower sets or data_type = 'fp16' ({outcome})"
        )
    check_widths(outcome, spec)
    return outcome


def _of_first(
    planner: EmbeddingShardingPlanner, model: nn.Module, group: dist.ProcessGroup
) -> ShardingPlan | str:
    """Rank 0's plan, or why it found none, on every rank: none of them waits for one that failed."""
    outcome: list[ShardingPlan | str] = [""]
    if group.rank() == 0:
        try:
            outcome = [planner.plan(model, [Sharder()])]
        except PlannerError as error:
            outcome = [str(error).splitlines()[0]]
    if group.size() > 1:
        dist.broadcast_object_list(outcome, 0, group=group)
    return outcome[0]


def check_widths(plan: ShardingPlan, spec: EmbeddingSpec) -> None:
    """Every shard must have a width that FBGEMM's kernels hold: a multiple of 4 up to 1,024.

    Raises:
        UserError: naming the table that the plan cuts otherwise.
    """
    for line in describe_plan(plan, spec):
        table = line["table"].partition("__")[0]  # a separate set's is `table__set`
        for _, _, rows, cols in line["shards"]:
            if rows and (cols % 4 or not 4 <= cols <= MAX_WIDTH):
                raise UserError(
                    f"embedding.tables.{table}: the plan ({line['kind']}) has a shard of width "
                    f"{cols}, where a multiple of 4 between 4 and {MAX_WIDTH} is needed; set its "
                    "sharding to 'table_wise' or 'row_wise', or other widths of the sets"
                )


def _constraint(
    physical: PhysicalTable, spec: EmbeddingSpec, placement: Placement
) -> ParameterConstraints:
    optimizer = physical.form.optimizer
    refused = refused_kinds(optimizer, physical.form.data_type)
    kind = physical.table.sharding
    if kind in refused:
        raise UserError(
            f"embedding.tables.{physical.table.name}: sharding = '{kind}' is not possible with "
            f"{optimizer.name} and {physical.form.data_type}: {refused[kind]}; use "
            + " or ".join(f"'{each}'" for each in KINDS if each not in refused)
        )
    kinds = [each for each in KINDS if each not in refused] if kind == "auto" else [kind]
    if placement.world_size == 1 and kind == "auto":
        kinds = ["table_wise"]
    part = None
    if kind == "column_wise":
        part = max(4, -(-physical.width // (4 * placement.world_size)) * 4)
    return ParameterConstraints(sharding_types=kinds, min_partition=part)


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


def data_parallel_tables(plan: ShardingPlan) -> set[str]:
    """Physical names of the tables that every rank holds whole."""
    return {
        name
        for module in plan.plan.values()
        for name, sharding in module.items()  # type: ignore[attr-defined]
        if sharding.sharding_type == "data_parallel"
    }


def describe_plan(plan: ShardingPlan, spec: EmbeddingSpec) -> list[dict[str, Any]]:
    """One JSON-able line per physical table: where its parts are and what they should take.

    Returns:
        `table`, `kind`, `kernel`, and in step with each other `ranks`, `shards` (first row, first
        column, rows, columns), `weight_bytes` and `state_bytes`.
    """
    tables = {each.name: each for each in physical_tables(spec)}
    lines = []
    for module in plan.plan.values():
        for name, sharding in module.items():  # type: ignore[attr-defined]
            physical, ranks = tables[name], list(sharding.ranks or [])
            if sharding.sharding_spec:
                cut = sharding.sharding_spec.shards
                shards = [[*each.shard_offsets, *each.shard_sizes] for each in cut]
            else:
                shards = [[0, 0, physical.table.rows, physical.width] for _ in ranks]
            optimizer = physical.form.optimizer.name
            data_type = physical.form.data_type
            need = [block_bytes(optimizer, data_type, *shard[2:]) for shard in shards]
            lines.append(
                {
                    "table": name.removeprefix("t_"),
                    "kind": sharding.sharding_type,
                    "kernel": sharding.compute_kernel,
                    "ranks": ranks,
                    "shards": shards,
                    "weight_bytes": [each.weights for each in need],
                    "state_bytes": [each.state for each in need],
                }
            )
    return lines


def predicted_bytes(lines: list[dict[str, Any]], world_size: int) -> list[TableBytes]:
    """What each rank's part of the tables should take, by rank.

    Args:
        lines: as `describe_plan` gives them.
        world_size: number of ranks.
    """
    by_rank = [TableBytes()] * world_size
    for line in lines:
        for rank, weights, state in zip(
            line["ranks"], line["weight_bytes"], line["state_bytes"], strict=True
        ):
            by_rank[rank] += TableBytes(weights, state)
    return by_rank


def host_memory_per_rank(local_world_size: int, root: Path = Path("/")) -> int:
    """Bytes of this machine's free memory, within its container's limit, for one of its ranks.

    Args:
        local_world_size: ranks on this machine.
        root: where `proc` and `sys` are mounted.
    """
    return memory(root)[1] // max(1, local_world_size)


def device_memory(device: torch.device, local_world_size: int) -> int:
    """Bytes that one rank has on its device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory_per_rank(local_world_size)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
