"""Plans on meta tensors: what must fit where, what lines say, and what fits and what does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer
from prismrec.config.ids import ManagedIds
from prismrec.embeddings.collection import build_collection, physical_tables
from prismrec.embeddings.managed.spec import ManagedRows
from prismrec.embeddings.memory import TableBytes
from prismrec.embeddings.plan import (
    Placement,
    Plan,
    TablePlace,
    find_plan,
    host_memory_per_rank,
    line_of,
    misfit,
    place_of,
    plan_tables,
    predicted_bytes,
)
from prismrec.embeddings.plan.expand import strips
from prismrec.embeddings.plan.sizes import parse_size
from prismrec.embeddings.sets import EmbeddingSpec, TableSpec
from tests.helpers.tables import make_spec

MIB = 2**20
ROWS = 2**21 // 12  # of 12 numbers: 8 MiB of weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dist.ProcessGroup]:
    path = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def one_table(
    optimizer: str = "adagrad", data_type: str = "fp32", **changes: object
) -> EmbeddingSpec:
    rule = TableOptimizer.model_validate({"name": optimizer})
    table = TableSpec("big", ROWS, ("user",), "sum", "packed", "auto", rule)
    table = replace(table, **changes)  # type: ignore[arg-type]
    return replace(make_spec(), tables=(table,), fields=("user",), data_type=data_type)


def _error(spec: EmbeddingSpec, placement: Placement) -> str:
    plan = find_plan(spec, placement)
    assert not plan.fits
    return misfit(plan, spec).message


def _as_planned(plan: Plan) -> None:
    """Every rank has the room, and takes the time and the memory of its strips."""
    assert plan.fits
    ms = [0.0] * plan.placement.world_size
    host = [0] * plan.placement.world_size
    for table in plan.tables:
        for piece, strip in zip(table.option.pieces, table.place.strips, strict=True):
            for rank in range(strip.rank, strip.rank + strip.ranks):
                ms[rank] += piece.ms
                host[rank] += piece.host
    assert plan.ms.tolist() == pytest.approx(ms)
    assert plan.host.tolist() == host
    assert max(host) <= plan.placement.host_room


@pytest.mark.parametrize(
    ("optimizer", "data_type", "weights", "state"),
    [
        ("sgd", "fp32", 8, 0),
        ("adagrad", "fp32", 8, 8),
        ("adagrad", "fp16", 4, 8),
        ("lamb", "fp32", 8, 16),
        ("adam", "fp32", 8, 16),
        ("partial_rowwise_adam", "fp32", 8, 8 + 8 / 12),
    ],
)
def test_weights_state_and_a_copy_must_fit_on_cpu(
    optimizer: str, data_type: str, weights: float, state: float
) -> None:
    spec = one_table(optimizer, data_type)
    need = 2 * (weights + state) / 0.85 * MIB
    assert find_plan(spec, Placement(1, 1, "cpu", int(need + MIB), 1)).fits
    words = _error(spec, Placement(1, 1, "cpu", int(need - MIB), 1))
    assert "MiB with optimizer state" in words
    assert "do not fit 1 ranks" in words


def test_what_fits_with_sgd_may_not_fit_with_adagrad() -> None:
    place = Placement(1, 1, "cpu", 20 * MIB, 1)
    assert find_plan(one_table("sgd"), place).fits
    words = _error(one_table("adagrad"), place)
    assert "16.0 MiB with optimizer state" in words
    assert "1 ranks of 20.0 MiB, 15% of which is kept" in words


def test_on_cuda_the_copy_is_in_host_memory() -> None:
    spec = one_table("adagrad", kernel="fused")
    assert find_plan(spec, Placement(1, 1, "cuda", 20 * MIB, 1, host_memory=20 * MIB)).fits
    for device, host in ((17, 20), (20, 17)):
        place = Placement(1, 1, "cuda", device * MIB, 1, host_memory=host * MIB)
        assert not find_plan(spec, place).fits


def test_the_reservation_is_what_the_recipe_says() -> None:
    need = int(2 * 16.1 * MIB)
    assert find_plan(one_table(), Placement(1, 1, "cpu", need, 1, reserved=0.0)).fits
    assert not find_plan(one_table(), Placement(1, 1, "cpu", need, 1, reserved=0.05)).fits


@pytest.mark.parametrize(("bytes_per_row", "managed", "more"), [(4, False, 4), (0, True, 40)])
def test_what_else_a_row_takes_counts_twice_on_cpu_for_the_copy(
    bytes_per_row: int, managed: bool, more: int
) -> None:
    placement = Placement(1, 1, "cpu", 2**40, 1)
    bare = find_plan(one_table(sharding="row_wise"), placement).host[0]
    rows = ManagedRows(ManagedIds(kind="managed"), buckets=8) if managed else None
    spec = one_table(sharding="row_wise", managed=rows)
    full = find_plan(spec, replace(placement, bytes_per_row=bytes_per_row)).host[0]
    assert full - bare == 2 * more * ROWS


def test_a_data_parallel_table_has_a_gradient_too() -> None:
    placement = Placement(2, 2, "cpu", 2**40, 1)
    whole = find_plan(one_table(sharding="data_parallel"), placement)
    # weights, state and gradient of 8 MiB each on both ranks, and a copy of the first two
    assert [round(each / MIB) for each in whole.host] == [40, 40]
    half = find_plan(one_table(sharding="row_wise"), placement)
    assert [round(each / MIB) for each in half.host] == [16, 16]


def test_tables_go_to_host_memory_only_where_the_devices_are_full() -> None:
    spec = one_table()
    roomy = find_plan(spec, Placement(2, 2, "cuda", 80 * MIB, 1, host_memory=80 * MIB))
    assert [table.place.kernel for table in roomy.tables] in (["fused"], ["dense"])
    tight = find_plan(spec, Placement(2, 2, "cuda", 6 * MIB, 1, host_memory=80 * MIB))
    (table,) = tight.tables
    assert tight.fits
    assert table.place.kernel in ("fused_uvm", "fused_uvm_caching")
    assert "not all tables fit the devices" in table.why
    fused = one_table(kernel="fused")
    assert not find_plan(fused, tight.placement).fits


def test_a_cache_takes_its_share_of_the_device() -> None:
    spec = replace(one_table("sgd", kernel="fused_uvm_caching"), cache_load_factor=0.5)
    plan = find_plan(spec, Placement(1, 1, "cuda", 80 * MIB, 1, host_memory=80 * MIB))
    (table,) = plan.tables
    assert table.place.cache_load_factor == 0.5
    # half the weights, 12 bytes a row of bookkeeping, and a little for ids and outputs
    assert plan.device[0] == pytest.approx(4 * MIB + 12 * ROWS, rel=1e-3)
    assert plan.host[0] == pytest.approx(16 * MIB, rel=1e-3), "weights and their copy"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("world", [1, 2, 6, 16])
def test_a_plan_is_the_sum_of_its_strips(world: int, device: str) -> None:
    spec = make_spec()
    tables = tuple(
        replace(table, rows=rows) for table, rows in zip(spec.tables, (10**6, 3000, 9), strict=True)
    )
    for layout in ("packed", "separate", "spread"):
        laid = tuple(replace(table, layout=layout) for table in tables)
        _as_planned(
            find_plan(
                replace(spec, tables=laid), Placement(world, min(world, 2), device, 2**30, 64)
            )
        )


def test_the_same_question_has_the_same_answer() -> None:
    placement = Placement(6, 2, "cuda", 2**30, 64)
    first, second = (find_plan(make_spec(), placement).lines() for _ in range(2))
    assert first == second


def test_progress_only_goes_up_and_ends() -> None:
    told: list[float] = []
    find_plan(make_spec(), Placement(6, 2, "cuda", 2**30, 64), lambda n, of: told.append(n / of))
    assert told == sorted(told)
    assert 0 < told[0] < 0.6 < told[-1] <= 1


def test_lines_go_through_json_and_back() -> None:
    plan = find_plan(make_spec(), Placement(6, 2, "cuda", 2**30, 64))
    lines = json.loads(json.dumps(plan.lines()))
    assert [place_of(line) for line in lines] == [table.place for table in plan.tables]


def test_a_line_says_what_there_is_to_know() -> None:
    placement = Placement(2, 2, "cpu", 2**30, 4)
    (line,) = find_plan(one_table(sharding="row_wise"), placement).lines()
    numbers = {"milliseconds", "buffer_bytes"}
    assert {key: line[key] for key in line if key not in numbers} == {
        "table": "big",
        "sets": ["wide", "narrow"],
        "layout": "packed",
        "kind": "row_wise",
        "kernel": "fused",
        "cache_load_factor": None,
        "rows": ROWS,
        "width": 12,
        "optimizer": "adagrad",
        "data_type": "fp32",
        "strips": [[0, 12, 0, 2]],
        "weight_bytes": ROWS * 48,
        "state_bytes": ROWS * 48,
        "why": "the recipe says so",
    }
    assert line["milliseconds"] > 0
    # ids of both ranks' batches on each rank's share, and vectors of 12 numbers for 8 rows
    assert line["buffer_bytes"] == 2 * (8 * 8 // 2 + 8 * 12 * 4)


def test_ids_count_as_many_as_the_recipe_expects() -> None:
    placement = Placement(2, 2, "cpu", 2**30, 4)
    spec = one_table(sharding="row_wise", ids_per_row=3.0)
    assert find_plan(spec, placement).lines()[0]["buffer_bytes"] == 2 * (
        3 * 8 * 8 // 2 + 8 * 12 * 4
    )
    two_rows_an_id = one_table(sharding="row_wise", rows_per_id=2)
    assert find_plan(two_rows_an_id, placement).lines()[0]["buffer_bytes"] == 2 * (
        2 * 8 * 8 // 2 + 8 * 12 * 4
    )


def test_strips_of_unequal_width_never_share_a_rank() -> None:
    """TorchRec would take them for equally wide."""
    sets = tuple(replace(make_spec().sets[0], name=f"s{dim}", dim=dim) for dim in (8, 4, 16, 12))
    spec = replace(make_spec("spread"), sets=sets)
    for world, local in ((1, 1), (2, 2), (3, 3), (4, 2), (8, 4)):
        for table in find_plan(spec, Placement(world, local, "cuda", 2**30, 64)).tables:
            widths: dict[int, set[int]] = {}
            for strip in table.place.strips:
                widths.setdefault(strip.rank, set()).add(strip.cols)
            assert all(len(each) == 1 for each in widths.values())


def _place(name: str, kind: str, ranks: tuple[int, int]) -> dict[str, object]:
    physical = next(each for each in physical_tables(make_spec()) if each.name == name)
    place = TablePlace(name, kind, "fused", physical.table.rows, strips([12], [ranks]))
    return line_of(place, physical)


def test_predicted_bytes_follow_the_shards() -> None:
    lines = [_place("t_user", "row_wise", (0, 2)), _place("t_item", "table_wise", (0, 1))]
    assert [line["weight_bytes"] for line in lines] == [11 * 48, 336]
    # 6 of 11 rows and all 7 on rank 0, 5 on rank 1, none on rank 2
    assert predicted_bytes(lines, 3) == [TableBytes(624, 624), TableBytes(240, 240), TableBytes()]


def test_every_rank_holds_replicas_whole() -> None:
    line = _place("t_tag", "data_parallel", (0, 2)) | {"optimizer": "sgd"}
    assert predicted_bytes([line], 2) == [TableBytes(240, 0)] * 2


def test_column_strips_have_row_wise_state_each() -> None:
    (physical,) = physical_tables(one_table("rowwise_adagrad"))
    place = TablePlace("t_big", "column_wise", "fused", 10, strips([8, 4], [(0, 1), (1, 1)]))
    line = line_of(place, physical)
    assert line["state_bytes"] == 2 * 10 * 4
    assert predicted_bytes([line], 2) == [TableBytes(320, 40), TableBytes(160, 40)]


def test_rank_0_plans_and_torchrec_gets_it(alone: dist.ProcessGroup) -> None:
    spec = make_spec(sharding="data_parallel")
    model = nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    plan = plan_tables(model, spec, Placement(1, 1, "cpu", 2**30, 4), alone)
    (placed,) = plan.plan.values()
    kinds = {name: sharding.sharding_type for name, sharding in placed.items()}
    assert kinds == dict.fromkeys(("t_user", "t_item", "t_tag"), "data_parallel")
    with pytest.raises(UserError, match=r"do not fit 1 ranks.*rank 0 lacks .* of host memory"):
        plan_tables(model, spec, Placement(1, 1, "cpu", 1000, 4), alone)


def test_a_copy_of_the_tables_is_planned_on_its_own_ranks() -> None:
    whole = Placement(16, 4, "cuda", 2**30, 4)
    assert whole.one_copy(None) == whole
    assert whole.one_copy(8) == replace(whole, world_size=8)
    assert whole.one_copy(2) == replace(whole, world_size=2, local_world_size=2)
    assert not whole.one_copy(6).is_even


def test_memory_of_a_rank_is_within_the_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3000000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000000\n")
    assert host_memory_per_rank(2, tmp_path) == 1_000_000


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("80GiB", 80 * 2**30),
        ("80gb", 80 * 10**9),
        ("512 G", 512 * 10**9),
        ("1000", 1000),
        ("2k", 2000),
    ],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text, "--hbm") == count


@pytest.mark.parametrize("text", ["", "many", "80 GiBs", "-1GB", "0GiB", "5i", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=rf"^--hbm: '{text}' is no size; .*80GiB"):
        parse_size(text, "--hbm")
