"""Plans over two ranks: what is predicted is what the ranks hold, and all hear of a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.runs import make_recipe, write_rows
from tests.helpers.tables import make_spec

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
CASES = [
    *[(layout, kind, "adagrad") for layout in ("packed", "separate") for kind in KINDS],
    ("packed", "data_parallel", "sgd"),
    ("packed", "row_wise", "rowwise_adagrad"),
    ("separate", "table_wise", "rowwise_adagrad"),
    ("separate", "table_wise", "mixed"),
]


def _held(layout: str, kind: str, optimizer: str) -> tuple:
    """This rank's bytes as predicted and as measured, of weights and of state."""
    import torch
    import torch.distributed as dist
    from torchrec.distributed.model_parallel import DistributedModelParallel

    from prismrec.embeddings import access
    from prismrec.embeddings import optimizers as table_optimizers
    from prismrec.embeddings.collection import build_collection, physical_tables
    from prismrec.embeddings.memory import local_bytes
    from prismrec.embeddings.plan import (
        Placement,
        Sharder,
        data_parallel_tables,
        describe_plan,
        plan_tables,
        predicted_bytes,
    )

    rank, spec = dist.get_rank(), make_spec(layout, kind, optimizer)
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    plan = plan_tables(holder, spec, Placement(2, 2, "cpu", 2**30, 4), dist.group.WORLD)
    replicated = data_parallel_tables(plan)
    key = lambda name: name.rpartition("embedding_bags.")[2].removesuffix(".weight")  # noqa: E731
    bags = {key(name): parameter for name, parameter in holder.named_parameters()}
    tables = {each.name: each for each in physical_tables(spec)}
    fused = [each for name, each in tables.items() if name not in replicated]
    table_optimizers.fuse_optimizers(fused, bags)
    dmp = DistributedModelParallel(
        holder, device=torch.device("cpu"), plan=plan, sharders=[Sharder()]
    )
    whole = [(tables[key(n)], p) for n, p in dmp.named_parameters() if key(n) in replicated]
    plain = table_optimizers.plain_optimizers(whole)
    states = {p: state for each in plain for p, state in each.state.items()}
    held = local_bytes(access.local_shards(dmp, spec, rank, states))
    predicted = predicted_bytes(describe_plan(plan, spec), 2)[rank]
    return (predicted.weights, predicted.state), (held.weights, held.state)


def _refused() -> str:
    import torch
    import torch.distributed as dist

    from prismrec.config import UserError
    from prismrec.embeddings.collection import build_collection
    from prismrec.embeddings.plan import Placement, plan_tables

    spec = make_spec()
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    try:
        plan_tables(holder, spec, Placement(2, 2, "cpu", 1000, 4), dist.group.WORLD)
    except UserError as error:
        return error.message
    return ""


def _memory_of_a_run(data: Path) -> dict[str, float]:
    from prismrec.data.source import open_data
    from prismrec.models import spec_of
    from prismrec.train.process_group import process_group
    from prismrec.train.sharding import shard_model

    recipe = make_recipe(
        data,
        "workers.count=2",
        "embedding.sharding=row_wise",
        "embedding.tables.tags={sharding='data_parallel'}",
    )
    spec = spec_of(recipe, open_data(data).schema)
    with process_group("cpu") as ranks:
        model = shard_model(recipe, spec, ranks, is_bf16=False, total_steps=5)
        return model.table_memory()


def _all(data: Path) -> tuple[list[tuple], str, dict[str, float]]:
    return [_held(*case) for case in CASES], _refused(), _memory_of_a_run(data)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_ranks(_all, 2, write_rows(tmp_path_factory.mktemp("plan") / "rows"), timeout_s=240)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_ranks_hold_what_is_predicted(two_ranks, case):
    ranks = [cases[CASES.index(case)] for cases, _, _ in two_ranks]
    for predicted, held in ranks:
        assert predicted == held
    total = sum(sum(predicted) for predicted, _ in ranks)
    if case == ("packed", "row_wise", "adagrad"):
        assert total == 23 * 12 * 4 * 2
    if case == ("packed", "data_parallel", "sgd"):
        assert total == 2 * 23 * 12 * 4


def test_every_rank_hears_that_the_tables_do_not_fit(two_ranks):
    (_, first, _), (_, second, _) = two_ranks
    assert "do not fit 2 ranks" in first
    assert first == second


def test_a_run_says_what_the_fullest_rank_should_hold_and_holds(two_ranks):
    # rank 0: 21 of 41 users and 13 of 26 items, all 13 tags; 12 weights a row and as many states
    expected = (21 + 13 + 13) * 12 * 4 * 2.0
    for _, _, memory in two_ranks:
        assert memory == {"memory/predicted_bytes": expected, "memory/table_bytes": expected}
