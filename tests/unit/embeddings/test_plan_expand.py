"""A chosen place as shards: by hand, and as TorchRec itself cuts tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from prismrec.config.placement import KINDS
from prismrec.embeddings.collection import build_collection
from prismrec.embeddings.plan.expand import (
    Block,
    TablePlace,
    even_rows,
    even_widths,
    parameter_sharding,
    sharding_plan,
    strips,
)
from prismrec.embeddings.sharder import torchrec_name
from tests.helpers.tables import make_spec


def _place(kind: str, rows: int, widths: list[int], ranks: list[tuple[int, int]]) -> TablePlace:
    kernel = "dense" if kind == "data_parallel" else "fused"
    return TablePlace("t_item", kind, kernel, rows, strips(widths, ranks))


@pytest.mark.parametrize(
    ("place", "blocks"),
    [
        (_place("table_wise", 7, [12], [(3, 1)]), [(3, 0, 0, 7, 12)]),
        (
            _place("column_wise", 7, [8, 4], [(2, 1), (0, 1)]),
            [(2, 0, 0, 7, 8), (0, 0, 8, 7, 4)],
        ),
        (
            _place("row_wise", 7, [12], [(0, 4)]),
            [(0, 0, 0, 2, 12), (1, 2, 0, 2, 12), (2, 4, 0, 2, 12), (3, 6, 0, 1, 12)],
        ),
        (
            _place("table_row_wise", 3, [12], [(2, 2)]),
            [(2, 0, 0, 2, 12), (3, 2, 0, 1, 12)],
        ),
        (
            _place("table_column_wise", 3, [4, 8], [(3, 1), (2, 1)]),
            [(3, 0, 0, 3, 4), (2, 0, 4, 3, 8)],
        ),
        (
            _place("grid", 3, [4, 8], [(2, 2), (0, 2)]),
            [(2, 0, 0, 2, 4), (3, 2, 0, 1, 4), (0, 0, 4, 2, 8), (1, 2, 4, 1, 8)],
        ),
        (
            _place("data_parallel", 3, [12], [(0, 2)]),
            [(0, 0, 0, 3, 12), (1, 0, 0, 3, 12)],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, TablePlace) else "",
)
def test_blocks_by_hand(place: TablePlace, blocks: list[tuple[int, ...]]) -> None:
    assert list(place.blocks()) == [Block(*block) for block in blocks]


def test_a_row_fewer_than_ranks_leaves_the_last_ones_empty() -> None:
    place = _place("row_wise", 2, [4], [(0, 4)])
    assert [(block.row, block.rows) for block in place.blocks()] == [(0, 1), (1, 1), (2, 0), (2, 0)]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 60),
    hosts=st.integers(1, 3),
    local=st.integers(1, 4),
    parts=st.integers(1, 4),
)
def test_even_cuts_are_those_of_torchrec(
    kind: str, rows: int, hosts: int, local: int, parts: int
) -> None:
    world, width = hosts * local, 48  # of which 1, 2, 3 and 4 parts are multiples of 4
    cuts = parts if kind in ("column_wise", "table_column_wise", "grid") else 1
    held = {"data_parallel": world, "row_wise": world, "table_row_wise": local, "grid": local}
    ranks = [(0, held.get(kind, 1))] * cuts
    place = _place(kind, rows, list(even_widths(width, cuts)), ranks)
    sizes, offsets = calculate_shard_sizes_and_offsets(
        torch.empty(rows, width, device="meta"),
        world,
        local,
        torchrec_name(kind),
        col_wise_shard_dim=width // cuts,
    )
    blocks = list(place.blocks())
    assert [[block.rows, block.cols] for block in blocks] == sizes
    assert [[block.row, block.col] for block in blocks if block.rows] == [
        offset for offset, size in zip(offsets, sizes, strict=True) if size[0]
    ]


@settings(derandomize=True, max_examples=200)
@given(rows=st.integers(1, 10_000), parts=st.integers(1, 1024))
def test_even_rows_cover_every_row_once(rows: int, parts: int) -> None:
    cut = even_rows(rows, parts)
    assert len(cut) == parts
    assert sum(held for _, held in cut) == rows
    assert all(
        start == sum(held for _, held in cut[:part]) for part, (start, _) in enumerate(cut[:9])
    )


@settings(derandomize=True, max_examples=200)
@given(units=st.integers(1, 600), parts=st.integers(1, 64))
def test_even_widths_are_multiples_of_four_that_differ_by_four_at_most(
    units: int, parts: int
) -> None:
    parts = min(parts, units)
    widths = even_widths(4 * units, parts)
    assert sum(widths) == 4 * units
    assert all(width % 4 == 0 and width >= 4 for width in widths)
    assert max(widths) - min(widths) <= 4


def test_a_place_as_torchrec_takes_it() -> None:
    sharding = parameter_sharding(_place("grid", 3, [4, 8], [(8, 2), (2, 2)]), "cuda", 2)
    assert (sharding.sharding_type, sharding.compute_kernel) == ("grid_shard", "fused")
    assert sharding.ranks == [8, 9, 2, 3]
    assert sharding.sharding_spec is not None
    found = [
        (shard.shard_offsets, shard.shard_sizes, str(shard.placement))
        for shard in sharding.sharding_spec.shards  # type: ignore[attr-defined]
    ]
    assert found == [
        ([0, 0], [2, 4], "rank:8/cuda:0"),
        ([2, 0], [1, 4], "rank:9/cuda:1"),
        ([0, 4], [2, 8], "rank:2/cuda:0"),
        ([2, 4], [1, 8], "rank:3/cuda:1"),
    ]


def test_a_cached_table_tells_how_large_its_cache_is() -> None:
    place = TablePlace(
        "t", "table_wise", "fused_uvm_caching", 7, strips([8], [(0, 1)]), cache_load_factor=0.3
    )
    cache = parameter_sharding(place, "cuda", 8).cache_params
    assert cache is not None
    assert cache.load_factor == 0.3


def test_the_plan_names_each_table_under_the_module_that_holds_it() -> None:
    spec, meta = make_spec(), torch.device("meta")
    model = nn.ModuleDict({"outer": nn.ModuleDict({"tables": build_collection(spec, meta)})})
    places = [
        TablePlace(f"t_{name}", "table_wise", "fused", rows, strips([12], [(0, 1)]))
        for name, rows in (("user", 11), ("item", 7), ("tag", 5))
    ]
    plan = sharding_plan(model, places, "cpu", 1)
    assert list(plan.plan) == ["outer.tables"]
    assert sorted(plan.plan["outer.tables"]) == ["t_item", "t_tag", "t_user"]  # type: ignore[arg-type]
