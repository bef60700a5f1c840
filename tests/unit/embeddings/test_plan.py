from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
)

from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.collection import build_collection
from prismrec.embeddings.memory import TableBytes
from prismrec.embeddings.plan import (
    Placement,
    check_widths,
    describe_plan,
    host_memory_per_rank,
    plan_tables,
    predicted_bytes,
)
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


def _one_table(optimizer: str, data_type: str = "fp32") -> EmbeddingSpec:
    rule = TableOptimizer.model_validate({"name": optimizer})
    table = TableSpec("big", ROWS, ("user",), "sum", "packed", "auto", rule)
    return replace(make_spec(), tables=(table,), fields=("user",), data_type=data_type)


def _plan(spec: EmbeddingSpec, place: Placement, group: dist.ProcessGroup) -> ShardingPlan:
    holder = nn.ModuleDict({"tables": build_collection(spec, torch.device("meta"))})
    return plan_tables(holder, spec, place, group)


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
    alone: dist.ProcessGroup, optimizer: str, data_type: str, weights: float, state: float
) -> None:
    spec = _one_table(optimizer, data_type)
    need = 2 * (weights + state) / 0.85 * MIB
    _plan(spec, Placement(1, 1, "cpu", int(need + MIB), 1), alone)
    short = Placement(1, 1, "cpu", int(need - MIB), 1)
    with pytest.raises(
        UserError, match=r"the tables \(.* MiB with optimizer state.* do not fit 1 "
    ):
        _plan(spec, short, alone)


def test_what_fits_with_sgd_may_not_fit_with_adagrad(alone: dist.ProcessGroup) -> None:
    place = Placement(1, 1, "cpu", 20 * MIB, 1)
    _plan(_one_table("sgd"), place, alone)
    with pytest.raises(UserError, match=r"16\.0 MiB with optimizer state.*1 ranks of 20\.0 MiB"):
        _plan(_one_table("adagrad"), place, alone)


def test_on_cuda_the_copy_is_in_host_memory(alone: dist.ProcessGroup) -> None:
    spec = _one_table("adagrad")
    _plan(spec, Placement(1, 1, "cuda", 20 * MIB, 1, host_memory=20 * MIB), alone)
    for device, host in ((17, 20), (20, 17)):
        with pytest.raises(UserError, match="do not fit"):
            _plan(spec, Placement(1, 1, "cuda", device * MIB, 1, host_memory=host * MIB), alone)


def _cut(spec: EmbeddingSpec, kind: str, blocks: dict[str, list[list[int]] | None]) -> ShardingPlan:
    """A plan with the given blocks (row, column, rows, columns) on ranks 0, 1, ... of each table."""
    module = EmbeddingModuleShardingPlan()
    for name, shards in blocks.items():
        module[name] = ParameterSharding(
            sharding_type=kind,
            compute_kernel="fused",
            ranks=list(range(len(shards or "ab"))),
            sharding_spec=shards
            and EnumerableShardingSpec(
                [
                    ShardMetadata(block[:2], block[2:], f"rank:{rank}/cpu")
                    for rank, block in enumerate(shards)
                ]
            ),
        )
    return ShardingPlan({"tables": module})


@pytest.mark.parametrize("width", [2, 6, 10])
def test_a_shard_of_a_width_the_kernels_lack_is_refused(width: int) -> None:
    spec = make_spec()
    plan = _cut(spec, "column_wise", {"t_item": [[0, 0, 7, width], [0, width, 7, 12 - width]]})
    with pytest.raises(
        UserError, match=rf"embedding\.tables\.item: .*column_wise.* width {width},"
    ):
        check_widths(plan, spec)


def test_a_shard_wider_than_the_kernels_take_is_refused_under_its_tables_name() -> None:
    wide = replace(make_spec("separate").sets[0], dim=1028)
    spec = replace(make_spec("separate"), sets=(wide,))
    for kind, blocks in (("table_wise", [[0, 0, 7, 1028]]), ("data_parallel", None)):
        plan = _cut(spec, kind, {"t_item__wide": blocks})
        with pytest.raises(UserError, match=r"embedding\.tables\.item: .* width 1028, .* 1024"):
            check_widths(plan, spec)


def test_widths_that_fit_pass_and_empty_shards_have_none() -> None:
    spec = make_spec()
    check_widths(_cut(spec, "column_wise", {"t_item": [[0, 0, 7, 8], [0, 8, 7, 4]]}), spec)
    check_widths(_cut(spec, "row_wise", {"t_item": [[0, 0, 7, 12], [7, 0, 0, 2]]}), spec)


def test_predicted_bytes_follow_the_shards() -> None:
    spec = make_spec()
    blocks = {"t_user": [[0, 0, 6, 12], [6, 0, 5, 12]], "t_item": [[0, 0, 7, 12]]}
    lines = describe_plan(_cut(spec, "row_wise", blocks), spec)
    assert [line["weight_bytes"] for line in lines] == [[288, 240], [336]]
    assert predicted_bytes(lines, 3) == [TableBytes(624, 624), TableBytes(240, 240), TableBytes()]


def test_every_rank_holds_replicas_whole() -> None:
    spec = make_spec(optimizer="sgd")
    lines = describe_plan(_cut(spec, "data_parallel", {"t_tag": None}), spec)
    assert lines[0]["shards"] == [[0, 0, 5, 12]] * 2
    assert predicted_bytes(lines, 2) == [TableBytes(240, 0)] * 2


def test_memory_of_a_rank_is_within_the_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3000000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000000\n")
    assert host_memory_per_rank(2, tmp_path) == 1_000_000
