"""Bytes that taking the sets apart costs behind sharded tables, counted on two ranks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.ranks import run_ranks

BATCH = 32
FIELDS = ("user", "item", "seen", "tag", "shop")
WIDTHS = {"wide": 16, "mid": 8, "small": 4}
ALL = 4 * BATCH * len(FIELDS) * sum(WIDTHS.values())
CASES = list(
    itertools.product(
        ("packed", "separate"), ("row_wise", "data_parallel", "table_wise", "column_wise")
    )
)


def spec_of(layout: str) -> EmbeddingSpec:
    features = {"tag": ("tag",), "goods": ("seen", "item"), "shop": ("shop",), "user": ("user",)}
    return EmbeddingSpec(
        tuple(EmbeddingSet(name, width, 0.1) for name, width in WIDTHS.items()),
        tuple(
            TableSpec(name, 9, of_table, "sum", layout, "auto", TableOptimizer())
            for name, of_table in features.items()
        ),
        FIELDS,
        "fp32",
    )


def _count(layout: str, kind: str) -> dict[str, Any]:
    """Bytes that forward and backward allocate, and the order of the output."""
    import torch
    import torch.distributed as dist
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

    from prismrec.embeddings.collection import SetViews, build_collection
    from prismrec.embeddings.plan.expand import sharding_plan
    from prismrec.embeddings.sharder import Sharder, shard_tables
    from tests.helpers.allocations import Allocations
    from tests.helpers.sharded import places

    spec, world = spec_of(layout), dist.get_world_size()
    holder = torch.nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    plan = sharding_plan(holder, places(spec, world, 1, kind), "cpu", world)
    tables = shard_tables(holder, spec, plan, torch.device("cpu"), Sharder()).dmp.module["tables"]
    rows = torch.arange(len(FIELDS) * BATCH) % 9
    ids = KeyedJaggedTensor.from_lengths_sync(list(FIELDS), rows, torch.ones_like(rows))
    pooled = tables(ids)
    keys, values = list(pooled.keys()), pooled.values().detach().requires_grad_()
    pooled, views = KeyedTensor(keys, pooled.length_per_key(), values), SetViews(spec)
    with Allocations() as forward:
        sets = views(pooled)
    gradients = [torch.ones_like(each) for each in sets]
    with Allocations() as backward:
        torch.autograd.grad(sets, values, gradients)
    return {"forward": forward.bytes, "backward": backward.bytes, "keys": keys}


def _count_each() -> list[dict[str, Any]]:
    return [_count(*case) for case in CASES]


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], dict[str, Any]]:
    return dict(zip(CASES, run_ranks(_count_each, 2)[0], strict=True))


@pytest.mark.parametrize("layout", ["packed", "separate"])
@pytest.mark.parametrize("kind", ["row_wise", "data_parallel"])
def test_rows_on_every_rank_keep_the_order_of_the_fields(
    counts: dict[tuple[str, str], dict[str, Any]], layout: str, kind: str
) -> None:
    count = counts[layout, kind]
    repeats = 3 if layout == "separate" else 1
    assert [key.partition("@")[0] for key in count["keys"]] == list(FIELDS) * repeats
    assert count["forward"] == 0
    assert count["backward"] == ALL


@pytest.mark.parametrize("layout", ["packed", "separate"])
def test_whole_tables_on_different_ranks_cost_one_copy(
    counts: dict[tuple[str, str], dict[str, Any]], layout: str
) -> None:
    """The output goes by rank: `tag` and `shop` are on the first, the neighbours on the other."""
    count = counts[layout, "table_wise"]
    assert count["forward"] == count["backward"] == ALL == 17920


def test_tables_cut_by_columns_come_in_the_order_of_their_first_strips(
    counts: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """TorchRec joins strips by a copy of its own; `small`, too narrow to cut, goes by rank."""
    packed, separate = counts["packed", "column_wise"], counts["separate", "column_wise"]
    assert (packed["forward"], packed["backward"]) == (0, ALL)
    assert (separate["forward"], separate["backward"]) == (ALL * 4 // 28, ALL)
