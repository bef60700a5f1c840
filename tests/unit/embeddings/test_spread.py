"""Tables that are cut between their sets: no rank holds strips of one table of unequal width."""

from __future__ import annotations

import pytest

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.plan import Placement, find_plan
from prismrec.embeddings.plan.rules import set_strips
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec

WIDTHS = (16, 12, 8, 16, 4)


def _spec(widths: tuple[int, ...], num_tables: int = 6) -> EmbeddingSpec:
    names = tuple(f"f{index}" for index in range(num_tables))
    return EmbeddingSpec(
        tuple(EmbeddingSet(f"s{m}", width, 0.1) for m, width in enumerate(widths)),
        tuple(
            TableSpec(name, 1000 * (1 + index), (name,), "sum", "spread", "auto", TableOptimizer())
            for index, name in enumerate(names)
        ),
        names,
        "fp32",
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_a_rank_has_equal_strips_of_a_table(world_size: int) -> None:
    placement = Placement(world_size, world_size, "cpu", 2**34, 64)
    for planned in find_plan(_spec(WIDTHS), placement).tables:
        strips = planned.place.strips
        assert sum(each.cols for each in strips) == sum(WIDTHS)
        ends = {sum(WIDTHS[:m]) for m in range(len(WIDTHS) + 1)}
        assert {each.col for each in strips} <= ends, "cut between sets"
        assert len(strips) == min(world_size, len(WIDTHS))
        assert len({each.rank for each in strips}) == len(strips)


@pytest.mark.parametrize(("world_size", "expected"), [(1, 4), (2, 4), (8, 4)])
def test_equal_sets_stay_apart_on_any_number_of_ranks(world_size: int, expected: int) -> None:
    placement = Placement(world_size, world_size, "cpu", 2**34, 64)
    for planned in find_plan(_spec((8, 8, 8, 8)), placement).tables:
        assert [each.cols for each in planned.place.strips] == [8] * expected


@pytest.mark.parametrize(
    ("widths", "places", "strips"),
    [
        (WIDTHS, 9, WIDTHS),
        (WIDTHS, 3, (16, 20, 20)),
        (WIDTHS, 1, (56,)),
        ((1024, 1024), 1, (1024, 1024)),
        ((1024, 512), 2, (1024, 512)),
        ((1024, 512), 1, (512, 512, 512)),
    ],
)
def test_the_narrowest_neighbours_go_together(
    widths: tuple[int, ...], places: int, strips: tuple[int, ...]
) -> None:
    assert set_strips(widths, places) == strips
