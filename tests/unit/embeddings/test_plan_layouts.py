"""How the sets of a table lie where the recipe leaves it to the planner, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prismrec.config.embedding import Communication, TableOptimizer
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.plan import Placement, choose_layouts, layout_choices
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.tables import make_spec

MIB = 2**20


def _spec(dims: tuple[int, ...], optimizer: str = "adagrad", **changes: object) -> EmbeddingSpec:
    rule = TableOptimizer.model_validate({"name": optimizer})
    table = TableSpec("item", MIB, ("item",), "sum", "auto", "auto", rule)
    table = replace(table, **changes)  # type: ignore[arg-type]
    sets = tuple(EmbeddingSet(f"s{index}", dim, 0.1) for index, dim in enumerate(dims))
    return EmbeddingSpec(sets, (table,), ("item",), "fp32", seed=1)


def _chosen(spec: EmbeddingSpec, memory: int = 2**40, world: int = 4) -> tuple[str, str]:
    return layout_choices(spec, Placement(world, world, "cuda", memory, 8))["item"]


def test_sets_are_packed_where_nothing_speaks_against_it() -> None:
    assert _chosen(_spec((16, 16, 8))) == (
        "packed",
        "one lookup and one update for all of its sets",
    )


@pytest.mark.parametrize("rule", ["rowwise_adagrad", "partial_rowwise_adam", "lamb"])
def test_sets_that_would_change_each_others_steps_are_separate(rule: str) -> None:
    layout, why = _chosen(_spec((16, 16), rule))
    assert layout == "separate"
    assert rule in why
    assert "couple" in why
    assert _chosen(replace(_spec((16, 16), rule), allow_coupled_sets=True))[0] == "packed"


def test_one_set_is_packed_whatever_updates_it() -> None:
    assert _chosen(_spec((16,), "rowwise_adagrad"))[0] == "packed"


def test_rows_over_1024_are_spread() -> None:
    layout, why = _chosen(_spec((1024, 8)))
    assert layout == "spread"
    assert "1032" in why
    assert _chosen(_spec((1020, 4)))[0] == "packed"


def test_rows_over_1024_are_separate_where_they_cannot_be_cut() -> None:
    lamb = replace(_spec((1024, 8), "lamb"), allow_coupled_sets=True)
    assert _chosen(lamb)[0] == "separate"
    assert _chosen(_spec((1024, 8), sharding="row_wise"))[0] == "separate"


def test_a_table_too_large_for_a_rank_shares_its_rows() -> None:
    layout, why = _chosen(_spec((16, 16)), int(129 * MIB / 0.85))
    assert layout == "packed"
    assert why == "256.0 MiB are too much for one rank, and can be shared out as a whole"


def test_where_rows_cannot_be_cut_it_is_spread_if_its_sets_fit() -> None:
    # a set of 16 numbers takes 64 MiB of weights and as much of state: 128 MiB, two sets 256 MiB
    spec = replace(_spec((16, 16)), communication=Communication(forward="int8"))
    fits_set, fits_both = int(129 * MIB / 0.85), int(257 * MIB / 0.85)
    assert _chosen(spec, fits_both)[0] == "packed"
    layout, why = _chosen(spec, fits_set)
    assert layout == "spread"
    assert "256.0 MiB" in why
    assert _chosen(spec, fits_set // 2)[0] == "packed", "no set fits then"
    assert _chosen(spec, fits_set, world=1)[0] == "packed"
    on_cpu = Placement(4, 4, "cpu", 2 * fits_set, 8)
    assert layout_choices(spec, on_cpu)["item"][0] == "spread", "the copy is in the same memory"
    assert _chosen(_spec((16, 16), sharding="row_wise"), fits_set)[0] == "packed"


def test_sets_that_cannot_share_a_row_need_no_layout() -> None:
    spec = _spec((16, 16))
    half = replace(spec, sets=(spec.sets[0], replace(spec.sets[1], data_type="fp16")))
    assert _chosen(half) == ("packed", "no two of its sets can share a row")


def test_only_tables_that_leave_it_open_change() -> None:
    spec = make_spec("separate")
    tables = (replace(spec.tables[0], layout="auto"), *spec.tables[1:])
    chosen = choose_layouts(replace(spec, tables=tables), Placement(2, 2, "cpu", 2**40, 8))
    assert [table.layout for table in chosen.tables] == ["packed", "separate", "separate"]
    assert [each.name for each in physical_tables(chosen)] == [
        "t_user",
        "t_item__wide",
        "t_item__narrow",
        "t_tag__wide",
        "t_tag__narrow",
    ]
