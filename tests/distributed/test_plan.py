"""Plans over several ranks: TorchRec takes them, tables train under them, and what they predict is held."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.config.embedding import Layout, ShardingKind, TableOptimizer
from prismrec.config.placement import KINDS
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import make_recipe, write_rows
from tests.helpers.tables import PlainTables, make_spec

STEPS, BATCH = 3, 8


def _table(
    name: str,
    rows: int,
    layout: Layout = "packed",
    sharding: ShardingKind = "auto",
    rule: str = "adagrad",
) -> TableSpec:
    optimizer = TableOptimizer.model_validate({"name": rule, "learning_rate": 0.1})
    return TableSpec(name, rows, (f"of_{name}",), "sum", layout, sharding, optimizer)


def _spec(tables: list[TableSpec]) -> EmbeddingSpec:
    sets = (EmbeddingSet("wide", 8, 0.1), EmbeddingSet("narrow", 4, 0.2))
    fields = tuple(feature for table in tables for feature in table.features)
    return EmbeddingSpec(sets, tuple(tables), fields, "fp32", seed=3)


def _specs() -> dict[str, EmbeddingSpec]:
    """A table of every kind, and tables that the planner places as it likes."""
    kinds = [_table(kind, 9 + index, sharding=kind) for index, kind in enumerate(KINDS)]
    kinds += [
        _table("spread", 13, "spread"),
        _table("spread_grid", 13, "spread", "grid"),
        _table("separate", 13, "separate"),
        _table("row_state", 13, "separate", rule="rowwise_adagrad"),
        _table("one_row", 1, sharding="row_wise"),
    ]
    sizes = (2000, 1500, 700, 300, 40, 9, 3)
    free = [_table(f"table{index}", rows) for index, rows in enumerate(sizes)]
    return {"kinds": _spec(kinds), "free": _spec(free)}


MEMORY = {"kinds": 2**30, "free": 600_000}
"""Bytes of a rank; what the planner places freely must go to several ranks to fit."""


def _train(spec: EmbeddingSpec, memory: int, local: int) -> dict[str, Any]:
    import torch.distributed as dist

    from prismrec.embeddings.access import initialize, local_shards
    from prismrec.embeddings.collection import SetViews, build_collection
    from prismrec.embeddings.memory import local_bytes
    from prismrec.embeddings.plan import (
        Placement,
        agreed_placement,
        agreed_plan,
        place_of,
        predicted_bytes,
        sharding_plan,
    )
    from prismrec.embeddings.sharder import Sharder, shard_tables
    from tests.helpers.sharded import draw, kjt, loss_of

    rank, world = dist.get_rank(), dist.get_world_size()
    group, share = dist.group.WORLD, BATCH // world
    placement = agreed_placement(Placement(world, local, "cpu", memory, share), group)
    lines = agreed_plan(spec, placement, group)
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    plan = sharding_plan(holder, [place_of(line) for line in lines], "cpu", local)
    sharded = shard_tables(holder, spec, plan, torch.device("cpu"), Sharder())
    states = sharded.plain_states()
    shards = local_shards(sharded.dmp, spec, rank, states)
    initialize(shards, spec)
    held, predicted = local_bytes(shards), predicted_bytes(lines, world)[rank]
    views, outputs = SetViews(spec), []
    for step in range(STEPS):
        sets = views(sharded.dmp.module["tables"](kjt(spec, draw(spec, step), rank * share, share)))
        outputs.append([x.detach().clone() for x in sets])
        for optimizer in sharded.plain:
            optimizer.zero_grad()
        (loss_of(sets, rank * share) * world).backward()
        for optimizer in sharded.plain:
            optimizer.step()
    return {
        "lines": lines,
        "outputs": outputs,
        "held": (held.weights, held.state),
        "predicted": (predicted.weights, predicted.state),
    }


def _refused() -> str:
    import torch.distributed as dist

    from prismrec.config import UserError
    from prismrec.embeddings.collection import build_collection
    from prismrec.embeddings.plan import Placement, plan_tables

    spec, world = make_spec(), dist.get_world_size()
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    try:
        plan_tables(holder, spec, Placement(world, world, "cpu", 1000, 4), dist.group.WORLD)
    except UserError as error:
        return error.message
    return ""


RECORDS = (
    "embedding.track_touched=true",
    "embedding.layout=packed",
    "embedding.tables.user={rows=16, ids='managed'}",
)


def _machines() -> tuple[Any, Any]:
    """What all ranks make of machines that differ, and of those that do not."""
    import torch.distributed as dist

    from prismrec.embeddings.plan import Placement, agreed_placement

    rank, world = dist.get_rank(), dist.get_world_size()
    alike = Placement(world, 2, "cpu", 1000 + rank, 4, host_memory=500 - rank)
    uneven = replace(alike, local_world_size=2 if rank < 2 else 1)
    return agreed_placement(alike, dist.group.WORLD), agreed_placement(uneven, dist.group.WORLD)


def _recorded(data: Path, *changes: str) -> tuple[dict[str, float], dict[str, list[int]]]:
    """What a run says of its memory when it starts."""
    from prismrec.data.source import open_data
    from prismrec.models import spec_of
    from prismrec.train.process_group import process_group
    from prismrec.train.sharding import shard_model

    recipe = make_recipe(
        data,
        "workers.count=2",
        "embedding.sharding=row_wise",
        "embedding.layout=auto",
        "embedding.tables.tags={sharding='data_parallel'}",
        *changes,
    )
    spec = spec_of(recipe, open_data(data).schema)
    with process_group("cpu") as ranks:
        model = shard_model(recipe, spec, ranks, is_bf16=False, total_steps=5)
        memory = model.table_memory()
        return memory.metrics(), memory.facts()


def _all(local: int, data: Path | None) -> dict[str, Any]:
    os.environ["LOCAL_WORLD_SIZE"] = str(local)
    found: dict[str, Any] = {
        name: _train(spec, MEMORY[name], local) for name, spec in _specs().items()
    }
    found["refused"] = _refused()
    if data is None:
        found["machines"] = _machines()
    else:
        found["recorded"] = _recorded(data)
        found["with records"] = _recorded(data, *RECORDS)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found, by number of ranks: two on one machine, four on two."""
    data = write_rows(tmp_path_factory.mktemp("plan") / "rows")
    return {
        2: run_ranks(_all, 2, 2, data, timeout_s=240),
        4: run_ranks(_all, 4, 2, None, timeout_s=240),
    }


@pytest.mark.parametrize("name", ["kinds", "free"])
@pytest.mark.parametrize("world", [2, 4])
def test_tables_train_under_the_plan_as_plain_ones(ranks, world, name):
    from tests.helpers.sharded import draw, loss_of

    spec = _specs()[name]
    reference = PlainTables(spec)
    for step in range(STEPS):
        bags, _ = draw(spec, step)
        sets = reference.lookup(bags)
        for m, expected in enumerate(sets):
            got = torch.cat([rank[name]["outputs"][step][m] for rank in ranks[world]])
            torch.testing.assert_close(got.double(), expected.detach(), atol=3e-6, rtol=3e-6)
        reference.step(loss_of(sets, 0))


@pytest.mark.parametrize("world", [2, 4])
def test_the_plan_is_the_same_everywhere_and_of_the_kinds_asked_for(ranks, world):
    found = [rank["kinds"]["lines"] for rank in ranks[world]]
    assert all(lines == found[0] for lines in found)
    kinds = {line["table"]: line["kind"] for line in found[0]}
    assert {kind: kinds[kind] for kind in KINDS} == {kind: kind for kind in KINDS}
    assert kinds["spread_grid"] == "grid"
    assert kinds["spread"] in ("column_wise", "table_column_wise", "grid")
    strips = {line["table"]: line["strips"] for line in found[0]}
    assert [strip[:2] for strip in strips["spread"]] == [[0, 8], [8, 4]]


@pytest.mark.parametrize("world", [2, 4])
def test_tables_that_are_too_large_for_one_rank_are_on_several(ranks, world):
    lines = ranks[world][0]["free"]["lines"]
    busy = {
        rank
        for line in lines
        for _, _, first, count in line["strips"]
        for rank in range(first, first + count)
    }
    assert busy == set(range(world))


@pytest.mark.parametrize("name", ["kinds", "free"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_hold_what_is_predicted(ranks, world, name):
    for rank in ranks[world]:
        assert rank[name]["predicted"] == rank[name]["held"]
        assert sum(rank[name]["held"]) > 0
        assert 2 * sum(rank[name]["held"]) <= 0.85 * MEMORY[name]


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_hears_that_the_tables_do_not_fit(ranks, world):
    words = {rank["refused"] for rank in ranks[world]}
    assert len(words) == 1
    assert f"do not fit {world} ranks of 1000 B" in words.pop()


def test_ranks_agree_on_the_machines(ranks):
    found = {rank["machines"] for rank in ranks[4]}
    assert len(found) == 1
    alike, uneven = found.pop()
    assert (alike.memory, alike.host_memory) == (1000, 497), "the least that any rank has"
    assert (alike.local_world_size, alike.num_hosts, alike.has_hosts) == (2, 2, True)
    assert (uneven.local_world_size, uneven.num_hosts, uneven.has_hosts) == (2, 1, False)


def test_a_run_records_what_every_rank_should_hold_and_holds(ranks):
    # rank 0: 21 of 41 users and 13 of 26 items, all 13 tags; 12 weights a row and as many states
    expected = [(21 + 13 + 13) * 12 * 4 * 2, (20 + 13 + 13) * 12 * 4 * 2]
    for rank in ranks[2]:
        metrics, facts = rank["recorded"]
        assert metrics == {
            "memory/predicted_bytes": expected[0],
            "memory/table_bytes": expected[0],
        }
        assert facts == {"predicted_table_bytes": expected, "table_bytes": expected}


def test_maps_of_managed_ids_and_touched_rows_count_too(ranks):
    # 20 users in 4 buckets of 5 rows, so 10 on a rank; 13 of 26 items, all 13 tags
    rows = 10 + 13 + 13
    expected = [rows * 12 * 4 * 2 + rows * 4 + 10 * 40] * 2
    for rank in ranks[2]:
        metrics, facts = rank["with records"]
        assert set(metrics.values()) == {expected[0]}
        assert facts == {"predicted_table_bytes": expected, "table_bytes": expected}
