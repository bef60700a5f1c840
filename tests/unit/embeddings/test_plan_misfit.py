"""Tables that do not fit: who lacks what, and which of the changes tried would help."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.plan import Placement, find_plan, misfit, remedies, shortage
from prismrec.embeddings.plan.misfit import Remedy, ranks_needed
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec

MIB = 2**20
ORDER = ["tighter reservation", "UVM caching", "column split", "fp16", "int8"]


def _spec(*rows: int, **changes: object) -> EmbeddingSpec:
    """Tables `a`, `b`, ... of 16 numbers a row: with MiB rows, 64 MiB of weights and of state."""
    names = "abcdef"[: len(rows)]
    tables = tuple(
        replace(
            TableSpec(name, count, (name,), "sum", "packed", "auto", TableOptimizer()),
            **changes,  # type: ignore[arg-type]
        )
        for name, count in zip(names, rows, strict=True)
    )
    return EmbeddingSpec((EmbeddingSet("s", 16, 0.1),), tables, tuple(names), "fp32", seed=1)


def _tried(spec: EmbeddingSpec, placement: Placement) -> dict[str, Remedy]:
    plan = find_plan(spec, placement)
    assert not plan.fits
    return {remedy.change: remedy for remedy in remedies(plan, spec)}


def test_the_shortest_rank_and_its_largest_table_are_named() -> None:
    spec = _spec(4 * MIB, MIB, sharding="table_wise", kernel="fused")
    placement = Placement(2, 2, "cuda", 400 * MIB, 1, host_memory=2**40, reserved=0.5)
    plan = find_plan(spec, placement)
    assert not plan.fits
    short = shortage(plan)
    # table a takes 512 MiB and a little for ids, where there are 200
    assert (short.memory, short.table) == ("device", "a")
    assert short.over == pytest.approx(312 * MIB, rel=1e-3)
    assert short.table_bytes == pytest.approx(512 * MIB, rel=1e-3)
    assert plan.device[short.rank] == plan.device.max()
    words = misfit(plan, spec).message
    assert f"rank {short.rank} lacks 312.0 MiB of device memory" in words
    assert "table 'a' takes most, 512.0 MiB" in words


def test_host_memory_may_be_what_is_short() -> None:
    plan = find_plan(_spec(MIB), Placement(1, 1, "cuda", 2**40, 1, host_memory=100 * MIB))
    assert shortage(plan).memory == "host"
    assert shortage(plan).over == 128 * MIB - int(85 * MIB)


def test_changes_are_tried_in_order() -> None:
    spec = _spec(MIB)
    placement = Placement(1, 1, "cuda", 10 * MIB, 1, host_memory=10 * MIB)
    assert list(_tried(spec, placement)) == ORDER


def test_a_tighter_reservation_is_the_one_that_suffices() -> None:
    # 256 MiB with the copy, where 0.85 of 280 are 238: 0.085 may stay reserved, rounded down
    found = _tried(_spec(MIB), Placement(1, 1, "cpu", 280 * MIB, 1))["tighter reservation"]
    assert found.fits
    assert found.setting == "embedding.reserved_memory = 0.08"
    assert found.milliseconds is not None
    words = misfit(find_plan(_spec(MIB), Placement(1, 1, "cpu", 280 * MIB, 1)), _spec(MIB)).message
    assert words.endswith("they fit with embedding.reserved_memory = 0.08")


def test_something_is_always_left_to_the_rest() -> None:
    found = _tried(_spec(MIB), Placement(1, 1, "cpu", 260 * MIB, 1))["tighter reservation"]
    assert not found.fits
    assert found.setting == "embedding.reserved_memory = 0.05"
    assert found.over == pytest.approx(256 * MIB - 0.95 * 260 * MIB, rel=1e-2)


def test_host_memory_behind_the_device_is_tried_on_cuda_only() -> None:
    spec = _spec(MIB, kernel="fused")
    tight = Placement(1, 1, "cuda", 64 * MIB, 1, host_memory=2**40)
    found = _tried(spec, tight)["UVM caching"]
    assert found.fits
    assert found.setting == "embedding.kernel = 'fused_uvm_caching'"
    small = replace(tight, host_memory=200 * MIB)
    assert _tried(spec, small)["UVM caching"].over == pytest.approx(256 * MIB - 170 * MIB, rel=0.01)
    on_cpu = _tried(spec, Placement(1, 1, "cpu", 64 * MIB, 1))["UVM caching"]
    assert (on_cpu.fits, on_cpu.over) == (False, None)
    assert "in host memory already" in on_cpu.note


def test_a_table_that_may_not_be_split_is_told_to() -> None:
    spec = _spec(MIB, sharding="table_wise")
    found = _tried(spec, Placement(4, 4, "cpu", 100 * MIB, 1))["column split"]
    assert found.fits
    assert found.setting == "embedding.tables.a.sharding = 'column_wise'"


def test_where_one_split_does_not_do_all_tables_are_left_to_the_planner() -> None:
    spec = _spec(MIB, MIB, MIB, sharding="data_parallel")
    found = _tried(spec, Placement(4, 4, "cpu", 400 * MIB, 1))["column split"]
    assert found.fits
    assert found.setting == "embedding.sharding = 'auto', and of every table"


def test_why_columns_cannot_be_split() -> None:
    placement = Placement(2, 2, "cpu", 64 * MIB, 1)
    assert "to the planner" in _tried(_spec(MIB), placement)["column split"].note
    rule = TableOptimizer(name="rowwise_adagrad")
    found = _tried(_spec(4 * MIB, optimizer=rule), placement)["column split"]
    assert "table 'a': rowwise_adagrad would keep an accumulator" in found.note
    assert found.over is None


def test_half_the_bytes_of_weights_may_do() -> None:
    # 64 MiB of state, 64 or 32 of weights, twice with the copy
    found = _tried(_spec(MIB), Placement(1, 1, "cpu", 240 * MIB, 1))["fp16"]
    assert found.fits
    assert found.setting.startswith("embedding.data_type = 'fp16'")
    half = replace(_spec(MIB), data_type="fp16")
    assert "already" in _tried(half, Placement(1, 1, "cpu", 64 * MIB, 1))["fp16"].note


def test_int8_is_no_way_to_train_tables() -> None:
    found = _tried(_spec(MIB), Placement(1, 1, "cpu", 64 * MIB, 1))["int8"]
    assert (found.fits, found.over) == (False, None)
    assert "no kernel trains int8 tables" in found.note
    assert "export.table_type" in found.note


def test_where_nothing_helps_more_ranks_are_asked_for() -> None:
    spec, placement = _spec(64 * MIB), Placement(2, 2, "cpu", 100 * MIB, 1)
    plan = find_plan(spec, placement)
    # 64 x 256 MiB in all, over 85 MiB a rank
    assert ranks_needed(plan) == 193
    assert misfit(plan, spec).message.endswith("use 193 ranks or more, fewer rows or narrower sets")


def test_no_int8_kernel_steps_tables_on_cpu() -> None:
    """What the note on int8 says, asked of the kernel itself."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    bags = SplitTableBatchedEmbeddingBagsCodegen(
        [(10, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        weights_precision=SparseType.INT8,
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=0.1,
    )
    bags.init_embedding_weights_uniform(-1, 1)
    pooled = bags(torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
    with pytest.raises(NotImplementedError, match="not implemented for 'Byte'"):
        pooled.sum().backward()
