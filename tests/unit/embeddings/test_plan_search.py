"""How good a plan is: against TorchRec's planner, and against every plan there is."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    PlannerError,
    Shard,
    ShardEstimator,
    ShardingOption,
    Storage,
)
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.collection import PhysicalTable, build_collection, physical_tables
from prismrec.embeddings.memory import block_bytes
from prismrec.embeddings.plan import Placement, Plan, find_plan
from prismrec.embeddings.plan.price import price
from prismrec.embeddings.plan.rules import ways
from prismrec.embeddings.plan.search import best_layout
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.sharder import Sharder, torchrec_name

GIB = 2**30


def _spec(seed: int, tables: int, dims: tuple[int, ...], largest: float) -> EmbeddingSpec:
    """Tables of 100 to 10^largest rows, with one feature or several."""
    draw = random.Random(seed)
    specs, fields = [], []
    for index in range(tables):
        features = tuple(f"f{index}_{k}" for k in range(draw.choice([1, 1, 1, 2, 3])))
        fields += features
        rows = int(10 ** draw.uniform(2, largest))
        specs.append(
            TableSpec(f"f{index}", rows, features, "sum", "packed", "auto", TableOptimizer())
        )
    sets = tuple(EmbeddingSet(f"s{index}", dim, 0.1) for index, dim in enumerate(dims))
    return EmbeddingSpec(sets, tuple(specs), tuple(fields), "fp32", seed=1)


class _Storage(ShardEstimator):
    """TorchRec's bytes with the state and the copies that our prices count."""

    def __init__(self, placement: Placement, tables: dict[str, PhysicalTable]) -> None:
        self._bare = EmbeddingStorageEstimator(placement.topology())
        self._on_cuda, self._tables = placement.device == "cuda", tables

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        self._bare.estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            form = self._tables[option.name].form
            for shard in option.shards:
                need = block_bytes(form.optimizer.name, form.data_type, *shard.size)
                is_whole = option.sharding_type == "data_parallel"
                beside = need.state + (need.weights if is_whole else 0)
                shard.storage += Storage(
                    hbm=beside if self._on_cuda else 0,
                    ddr=need.total + (0 if self._on_cuda else beside),
                )


def _cost(options: list[ShardingOption], world_size: int) -> float:
    """Milliseconds of the busiest rank: the sum of TorchRec's estimates of its shards."""
    ms = np.zeros(world_size)
    for option in options:
        for shard in option.shards:
            ms[shard.rank] += shard.perf.total
    return float(ms.max())


def _theirs(spec: EmbeddingSpec, placement: Placement) -> float | None:
    """What the plan of TorchRec's planner costs under the same kinds, kernels and memory."""
    tables = {physical.name: physical for physical in physical_tables(spec)}
    constraints = {
        name: ParameterConstraints(
            sharding_types=sorted(
                {
                    torchrec_name(cut.kind)
                    for cut in ways(physical, spec, placement, in_host_memory=False)
                }
            ),
            compute_kernels=["fused", "dense"],
            pooling_factors=[1.0] * len(physical.features),
        )
        for name, physical in tables.items()
    }
    topology = placement.topology()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=placement.batch_size,
        enumerator=EmbeddingEnumerator(
            topology=topology,
            batch_size=placement.batch_size,
            constraints=constraints,
            estimator=[EmbeddingPerfEstimator(topology, constraints), _Storage(placement, tables)],
        ),
        storage_reservation=FixedPercentageStorageReservation(0),
        constraints=constraints,
        stats=[],
    )
    model = nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    try:
        planner.plan(model, [Sharder()])
    except PlannerError:
        return None
    return _cost(planner._best_plan, placement.world_size)


def _ours(plan: Plan) -> float:
    """What our plan costs, priced by TorchRec's estimator on every shard of it."""
    collection = EmbeddingBagCollection(tables=[], device=torch.device("meta"))
    options = []
    for table in plan.tables:
        blocks = list(table.place.blocks())
        kind = torchrec_name(table.place.kind)
        options.append(
            ShardingOption(
                name=table.place.name,
                tensor=torch.empty(table.place.rows, table.physical.width, device="meta"),
                module=("", collection),
                input_lengths=[1.0] * len(table.physical.features),
                batch_size=plan.placement.batch_size,
                sharding_type=kind,
                partition_by=get_partition_by_type(kind),
                compute_kernel=table.place.kernel,
                shards=[
                    Shard(size=[b.rows, b.cols], offset=[b.row, b.col], rank=b.rank) for b in blocks
                ],
                is_pooled=True,
            )
        )
    data = build_sharder_data_map({sharder_name(EmbeddingBagCollection): Sharder()})
    EmbeddingPerfEstimator(plan.placement.topology()).estimate(options, data)
    return _cost(options, plan.placement.world_size)


MIXES = [
    # seed, tables, widths of the sets, rows, ranks, ranks of a machine, device, memory, batch
    (1, 50, (16, 16, 64), 7, 8, 4, "cuda", 4.0, 2048),
    (2, 35, (16,), 7, 32, 8, "cuda", 20.0, 512),
    (3, 20, (128, 128), 8, 16, 8, "cpu", 2.6, 256),
    (4, 50, (32,), 8, 16, 8, "cpu", 2.6, 2048),
    (5, 8, (64, 64, 64, 64), 7, 32, 32, "cuda", 4.0, 2048),
    (6, 35, (16, 16, 64), 5, 8, 8, "cpu", 50.0, 512),
    (7, 3, (16,), 6, 16, 4, "cuda", 50.0, 2048),
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: f"seed{mix[0]}")
def test_the_busiest_rank_ends_no_later_than_by_torchrecs_planner(mix: tuple) -> None:
    seed, tables, dims, largest, world, local, device, factor, batch = mix
    spec = _spec(seed, tables, dims, largest)
    needed = sum(table.rows for table in spec.tables) * sum(dims) * 8 / world
    memory = int(max(2 * GIB, factor * needed))
    placement = Placement(world, local, device, memory, batch, host_memory=2 * memory)
    plan = find_plan(spec, placement)
    assert plan.fits
    cost = _ours(plan)
    assert cost == pytest.approx(plan.step_ms), "one strip stands for all of its shards"
    theirs = _theirs(spec, placement)
    assert theirs is not None
    assert cost <= 1.05 * theirs


@pytest.mark.parametrize(("world", "local"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_a_small_plan_is_the_best_of_all(seed: int, world: int, local: int) -> None:
    spec = _spec(seed, 3, (8, 16), 6)
    placement = Placement(world, local, "cuda", 80 * GIB, 2048)
    tables = {physical.name: physical for physical in physical_tables(spec)}
    cuts = {
        name: [
            cut
            for cut in ways(physical, spec, placement, in_host_memory=False)
            if cut.kind in ("data_parallel", "table_wise", "row_wise")
        ]
        for name, physical in tables.items()
    }
    choices = list(price(cuts, tables, spec, placement).values())
    best = np.inf
    for options in itertools.product(*choices):
        spots = [range(world) if each.ranks == 1 else [None] for each in options]
        for ranks in itertools.product(*spots):
            ms = np.zeros(world)
            for option, rank in zip(options, ranks, strict=True):
                ms[slice(None) if rank is None else rank] += option.pieces[0].ms
            best = min(best, ms.max())
    layout = best_layout(choices, placement)
    assert layout is not None
    assert layout.cluster(choices, placement).ms.max() == pytest.approx(best)


def test_a_plan_is_found_where_hardly_any_fits() -> None:
    """Four tables that fill four ranks to the last MiB: only one each will do."""
    rows = [3_000_000, 2_990_000, 2_980_000, 2_970_000, 1000]
    spec = _spec(1, 5, (16,), 3)
    tables = tuple(
        replace(table, rows=count, features=table.features[:1], sharding="table_wise")
        for table, count in zip(spec.tables, rows, strict=True)
    )
    fields = tuple(table.features[0] for table in tables)
    spec = replace(spec, tables=tables, fields=fields)
    need = 3_000_000 * 16 * 8 * 2 + 2**20
    plan = find_plan(spec, Placement(4, 4, "cpu", need, 8, reserved=0.0))
    assert plan.fits
    assert {table.place.strips[0].rank for table in plan.tables[:4]} == {0, 1, 2, 3}
