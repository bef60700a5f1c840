"""Where every table goes: TorchRec's planner under the rules that keep the numbers the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    PlannerError,
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
"""Share of a rank's memory that the planner leaves to dense weights, batches and buffers."""

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
        memory: bytes that one rank may fill with tables and their optimizer state.
        batch_size: rows of one rank's batch.
    """

    world_size: int
    local_world_size: int
    device: str
    memory: int
    batch_size: int


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
    topology = Topology(
        world_size=placement.world_size,
        local_world_size=placement.local_world_size,
        compute_device=placement.device,
        hbm_cap=placement.memory if placement.device == "cuda" else 0,
        ddr_cap=placement.memory,
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=placement.batch_size,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        constraints=constraints,
    )
    try:
        return planner.collective_plan(model, [Sharder()], group)
    except PlannerError as error:
        raise UserError(
            f"the tables ({table_bytes(spec) / 2**30:.1f} GiB with optimizer state) do not fit "
            f"{placement.world_size} ranks of {placement.memory / 2**30:.1f} GiB: use more "
            f"workers, fewer rows, narrower sets or data_type = 'fp16' ({str(error).splitlines()[0]})"
        ) from None


def _constraint(
    physical: PhysicalTable, spec: EmbeddingSpec, placement: Placement
) -> ParameterConstraints:
    optimizer = physical.table.optimizer
    refused = refused_kinds(optimizer, spec.data_type)
    kind = physical.table.sharding
    if kind in refused:
        raise UserError(
            f"embedding.tables.{physical.table.name}: sharding = '{kind}' is not possible with "
            f"{optimizer.name} and {spec.data_type}: {refused[kind]}; use "
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
    """Bytes of all weights and optimizer states over all ranks."""
    size = 2 if spec.data_type == "fp16" else 4
    per_element = {"sgd": 0, "adagrad": 1, "adam": 2, "lamb": 2}
    total = 0
    for table in spec.tables:
        states = per_element.get(table.optimizer.name)
        elements = table.rows * spec.packed_width
        state = elements * states if states is not None else table.rows
        total += elements * size + 4 * state
    return total


def data_parallel_tables(plan: ShardingPlan) -> set[str]:
    """Physical names of the tables that every rank holds whole."""
    return {
        name
        for module in plan.plan.values()
        for name, sharding in module.items()  # type: ignore[attr-defined]
        if sharding.sharding_type == "data_parallel"
    }


def describe_plan(plan: ShardingPlan) -> list[dict[str, Any]]:
    """One JSON-able line per physical table: kind, kernel, ranks and the rows and columns on each."""
    lines = []
    for module in plan.plan.values():
        for name, sharding in module.items():  # type: ignore[attr-defined]
            shards = sharding.sharding_spec.shards if sharding.sharding_spec else []
            lines.append(
                {
                    "table": name.removeprefix("t_"),
                    "kind": sharding.sharding_type,
                    "kernel": sharding.compute_kernel,
                    "ranks": list(sharding.ranks or []),
                    "shards": [[*s.shard_offsets, *s.shard_sizes] for s in shards],
                }
            )
    return lines


def host_memory_per_rank(local_world_size: int) -> int:
    """Bytes of this machine's free memory that one of its ranks may take for tables."""
    import psutil

    return int(psutil.virtual_memory().available / max(1, local_world_size))


def device_memory(device: torch.device, local_world_size: int) -> int:
    """Bytes that one rank may take for tables on its device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory_per_rank(local_world_size)
