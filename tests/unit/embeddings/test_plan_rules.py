"""Which ways are left to a table: what would change its numbers, and what the machines cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError
from prismrec.config.embedding import Communication, TableOptimizer
from prismrec.config.ids import ManagedIds
from prismrec.config.placement import KINDS, refused_kinds
from prismrec.embeddings.collection import PhysicalTable, physical_tables
from prismrec.embeddings.managed.spec import ManagedRows
from prismrec.embeddings.plan import Placement
from prismrec.embeddings.plan.rules import LEAST_CUT_BYTES, ways
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.tables import make_spec

COLUMNS = {"column_wise", "table_column_wise", "grid"}
HOSTS = {"table_row_wise", "table_column_wise", "grid"}
GIB = 2**30


def _place(world: int = 16, local: int = 8, device: str = "cuda", **changes: object) -> Placement:
    return replace(Placement(world, local, device, 80 * GIB, 64), **changes)  # type: ignore[arg-type]


def _item(spec: EmbeddingSpec) -> PhysicalTable:
    return next(each for each in physical_tables(spec) if each.table.name == "item")


def _with(spec: EmbeddingSpec, **changes: object) -> EmbeddingSpec:
    """The same tables, all of them changed."""
    tables = tuple(replace(table, **changes) for table in spec.tables)  # type: ignore[arg-type]
    return replace(spec, tables=tables)


def _kinds(spec: EmbeddingSpec, placement: Placement) -> set[str]:
    """Kinds left to a table large enough to be worth cutting."""
    spec = _with(spec, rows=4_000_000)
    return {cut.kind for cut in ways(_item(spec), spec, placement, in_host_memory=False)}


def _refusal(spec: EmbeddingSpec, placement: Placement) -> str:
    with pytest.raises(UserError) as refused:
        ways(_item(spec), spec, placement, in_host_memory=False)
    return refused.value.message


def test_what_coupling_allows() -> None:
    row_wise, lamb = TableOptimizer(name="rowwise_adagrad"), TableOptimizer(name="lamb")
    assert set(refused_kinds(row_wise, "fp32", may_couple=True)) == {"data_parallel"}
    bounded = row_wise.model_copy(update={"max_norm": 1.0})
    assert set(refused_kinds(bounded, "fp32", may_couple=True)) == {"data_parallel"} | COLUMNS
    assert set(refused_kinds(lamb, "fp32", may_couple=True)) == {"data_parallel"} | COLUMNS


def test_auto_considers_every_kind_where_there_are_machines() -> None:
    assert _kinds(make_spec(), _place()) == set(KINDS)


def test_small_tables_are_cut_by_columns_only_if_that_is_asked_for() -> None:
    """A strip has the ids sent once more, for a gain that such a table does not have."""
    spec, placement = make_spec(), _place()
    cuts = ways(_item(spec), spec, placement, in_host_memory=False)
    assert {cut.kind for cut in cuts} == set(KINDS) - COLUMNS
    asked = make_spec(sharding="column_wise")
    cuts = ways(_item(asked), asked, placement, in_host_memory=False)
    assert {cut.kind for cut in cuts} == {"column_wise"}
    rows = LEAST_CUT_BYTES // (12 * 4)  # two sets of 8 and 4 numbers
    for more, kinds in ((0, set(KINDS) - COLUMNS), (1, set(KINDS))):
        sized = _with(spec, rows=rows + more)
        cuts = ways(_item(sized), sized, placement, in_host_memory=False)
        assert {cut.kind for cut in cuts} == kinds


def test_auto_leaves_out_kinds_that_one_machine_makes_no_use_of() -> None:
    assert _kinds(make_spec(), _place(8, 8)) == set(KINDS) - HOSTS
    assert _kinds(make_spec(), _place(8, 1)) == set(KINDS) - HOSTS
    assert _kinds(make_spec(), _place(1, 1)) == {"table_wise"}


@pytest.mark.parametrize("kind", sorted(HOSTS))
def test_a_kind_that_goes_by_machines_is_there_on_one_machine_if_it_is_asked_for(kind: str) -> None:
    assert _kinds(make_spec(sharding=kind), _place(8, 8)) == {kind}
    assert _kinds(make_spec(sharding=kind), _place(1, 1)) == {kind}


@pytest.mark.parametrize("kind", sorted(HOSTS))
def test_a_kind_that_goes_by_machines_needs_them_to_be_alike(kind: str) -> None:
    for placement in (_place(6, 4), _place(6, 2, is_even=False)):
        words = _refusal(make_spec(sharding=kind), placement)
        assert f"embedding.tables.item: sharding = '{kind}' is not possible" in words
        assert "same number of ranks on every machine" in words
        assert "6 ranks" in words
        assert "use 'data_parallel' or 'table_wise' or 'column_wise' or 'row_wise'" in words
        assert not _kinds(make_spec(), placement) & HOSTS


@pytest.mark.parametrize("kind", sorted(COLUMNS))
def test_row_wise_state_is_cut_by_columns_only_with_the_flag(kind: str) -> None:
    spec = make_spec("separate", kind, "rowwise_adagrad")
    words = _refusal(spec, _place())
    assert "rowwise_adagrad would keep an accumulator for each row and shard" in words
    assert "embedding.allow_coupled_sets = true" in words
    assert _kinds(replace(spec, allow_coupled_sets=True), _place()) == {kind}


def test_spread_is_cut_between_sets_of_any_width_and_only_there() -> None:
    spec = make_spec("spread")
    cuts = ways(_item(spec), spec, _place(), in_host_memory=False)
    assert {cut.kind for cut in cuts} == COLUMNS
    assert {cut.widths for cut in cuts} == {(8, 4)}
    assert _kinds(spec, _place(1, 1)) == {"column_wise"}
    assert "layout = 'spread'" in _refusal(make_spec("spread", "row_wise"), _place())
    coupled = _refusal(make_spec("spread", "auto", "rowwise_adagrad"), _place())
    assert "an accumulator for each row and shard" in coupled


def test_a_spread_table_of_one_set_is_as_free_as_a_packed_one() -> None:
    spec = replace(make_spec("spread"), sets=make_spec().sets[:1])
    assert _kinds(spec, _place()) == set(KINDS)


def test_a_managed_table_is_cut_by_rows() -> None:
    managed = ManagedRows(ManagedIds(kind="managed"), buckets=16)
    spec = _with(make_spec(), managed=managed)
    assert _kinds(spec, _place()) == {"row_wise"}
    assert _kinds(spec, _place(1, 1)) == {"row_wise"}
    cuts = ways(_item(spec), spec, _place(), in_host_memory=True)
    assert {cut.kernel for cut in cuts} == {"fused", "fused_uvm"}, "rows change owners in no cache"
    for bad in (_with(spec, sharding="table_wise"), _with(spec, layout="spread")):
        assert "by rows only" in _refusal(bad, _place())


def test_int8_on_the_wire_rules_out_kinds_that_add_up_on_the_way() -> None:
    spec = replace(make_spec(), communication=Communication(forward="int8"))
    assert _kinds(spec, _place()) == set(KINDS) - {"row_wise", "table_row_wise", "grid"}
    asked = replace(spec, tables=make_spec(sharding="row_wise").tables)
    assert "int8" in _refusal(asked, _place())


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
def test_kernels_for_host_memory_are_for_cuda_and_for_fused_tables(kernel: str) -> None:
    spec = _with(make_spec(), kernel=kernel)
    words = _refusal(spec, _place(device="cpu"))
    assert f"embedding.tables.item: kernel = '{kernel}'" in words
    assert "on CPU" in words
    cuts = ways(_item(spec), spec, _place(), in_host_memory=False)
    assert {cut.kernel for cut in cuts} == {kernel}
    assert "data_parallel" not in {cut.kind for cut in cuts}
    asked = _refusal(_with(spec, sharding="data_parallel"), _place())
    assert f"kernel = '{kernel}' is for fused tables only" in asked


def test_the_planner_may_use_host_memory_where_the_kernel_is_left_to_it() -> None:
    def kernels(kernel: str, device: str) -> set[str]:
        spec = _with(make_spec(), kernel=kernel)
        cuts = ways(_item(spec), spec, _place(device=device), in_host_memory=True)
        return {cut.kernel for cut in cuts}

    assert kernels("auto", "cuda") == {"dense", "fused", "fused_uvm", "fused_uvm_caching"}
    assert kernels("fused", "cuda") == {"dense", "fused"}
    assert kernels("auto", "cpu") == {"dense", "fused"}


def test_a_table_that_is_too_wide_for_one_shard_is_cut_or_refused() -> None:
    sets = (EmbeddingSet("a", 1024, 0.1), EmbeddingSet("b", 8, 0.1))
    spec = replace(make_spec(), sets=sets)
    cuts = ways(_item(spec), spec, _place(), in_host_memory=False)
    assert {cut.kind for cut in cuts} == COLUMNS
    assert {cut.widths for cut in cuts if len(cut.widths) == 2} == {(516, 516)}
    words = _refusal(_with(spec, sharding="row_wise"), _place())
    assert "embedding.tables.item: sharding = 'row_wise' leaves rows of width 1032" in words


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    dims=st.lists(st.integers(1, 256).map(lambda n: 4 * n), min_size=1, max_size=4),
    layout=st.sampled_from(["packed", "spread"]),
    world=st.sampled_from([1, 2, 4, 16]),
    local=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(["auto", *KINDS]),
)
def test_every_strip_has_a_width_that_the_kernels_take(
    dims: list[int], layout: str, world: int, local: int, kind: str
) -> None:
    sets = tuple(EmbeddingSet(f"s{index}", dim, 0.1) for index, dim in enumerate(dims))
    table = TableSpec("t", 9, ("f",), "sum", layout, kind, TableOptimizer())  # type: ignore[arg-type]
    spec = EmbeddingSpec(sets, (table,), ("f",), "fp32", seed=1)
    (physical,) = physical_tables(spec)
    try:
        cuts = ways(physical, spec, _place(world, min(world, local)), in_host_memory=True)
    except UserError:
        assert kind not in ("auto", *COLUMNS)
        return
    assert cuts
    for cut in cuts:
        assert sum(cut.widths) == sum(dims)
        assert all(width % 4 == 0 and 4 <= width <= 1024 for width in cut.widths)
    assert len(set(cuts)) == len(cuts)
