"""Managed tables on 1, 2 and 4 ranks against a plain reference: vectors, states, rows, counters."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from prismrec.data.encode.codes import id_codes
from prismrec.data.encode.ids import NULL_ID
from tests.helpers.managed import (
    BUCKETS,
    MANAGED,
    STEPS,
    Case,
    Expected,
    Found,
    codes_in,
    draw,
    expected_of,
    train_all,
)
from tests.helpers.ranks import run_ranks

CASES = [
    Case(optimizer="sgd"),
    Case(optimizer="adagrad"),
    Case(optimizer="rowwise_adagrad", interval=3),
    Case(optimizer="adagrad", ttl_steps=3, weighted=False),
    Case(optimizer="adagrad", data_type="fp16", interval=1),
]
WORLDS = (1, 2, pytest.param(4, marks=pytest.mark.slow))


@cache
def trained(world: int) -> list[list[Found]]:
    """By rank and case."""
    return run_ranks(train_all, world, CASES, timeout_s=240)


@cache
def references() -> list[Expected]:
    """By case."""
    return [expected_of(case) for case in CASES]


@pytest.mark.parametrize("index", range(len(CASES)))
@pytest.mark.parametrize("world", WORLDS)
def test_training_is_that_of_the_plain_reference(world: int, index: int) -> None:
    found, expected = [each[index] for each in trained(world)], references()[index]
    close = (3e-3, 3e-3) if CASES[index].data_type == "fp16" else (2e-5, 2e-5)
    assert expected.evicted > 5, "the case shows nothing unless ids lose their rows"
    for step in range(STEPS):
        for m, want in enumerate(expected.outputs[step]):
            got = torch.cat([rank.outputs[step][m] for rank in found]).double()
            torch.testing.assert_close(got, want, atol=close[0], rtol=close[1])
    for rank in found:
        assert rank.evaluated, "evaluation changes nothing"
        for key, row, weight, states in rank.shards:
            here = slice(row, row + len(weight))
            want = expected.tables.weights[key].detach()[here]
            torch.testing.assert_close(weight.double(), want, atol=close[0], rtol=close[1])
            for state in states.values():
                sums = expected.tables.sums[key][here]
                sums = sums[:, 0] if state.dim() == 1 else sums
                torch.testing.assert_close(state.double(), sums, atol=1e-2, rtol=close[1])


@pytest.mark.parametrize("index", range(len(CASES)))
@pytest.mark.parametrize("world", WORLDS)
def test_the_same_ids_have_the_same_rows_on_any_number_of_ranks(world: int, index: int) -> None:
    found, maps = [each[index] for each in trained(world)], references()[index].maps
    for table, plain in maps.items():
        owners = {}
        for rank in found:
            first, ids = rank.owners[table]
            owners |= {first + at: each for at, each in enumerate(ids) if each != NULL_ID}
        codes = id_codes(np.array(list(owners.values()), np.int64), BUCKETS).tolist()
        assert dict(zip(codes, owners, strict=True)) == plain.row


@pytest.mark.parametrize("world", WORLDS)
def test_counters_are_those_of_all_ranks(world: int) -> None:
    for index, expected in enumerate(references()):
        first = trained(world)[0][index]
        assert all(rank[index].metrics == first.metrics for rank in trained(world))
        counted = first.metrics
        evictions = sum(counted[f"ids/{table}/evictions"] for table in MANAGED)
        assert evictions == expected.evicted
        for table, plain in expected.maps.items():
            lookups = sum(len(codes_in(draw(step)[0], table)) for step in range(1, STEPS + 1))
            assert counted[f"ids/{table}/lookups"] == lookups
            assert 0 < counted[f"ids/{table}/misses"] < lookups
            assert counted[f"ids/{table}/rows_in_use"] == len(plain.row)
            stayed = counted[f"ids/{table}/admissions"] - counted[f"ids/{table}/evictions"]
            assert stayed == counted[f"ids/{table}/rows_in_use"]
            assert counted[f"ids/{table}/dropped"] == 0


def test_a_newcomer_is_not_held_back_by_the_accumulator_of_the_row() -> None:
    """With interval 1 the last step's newcomers have taken one step, and have no other state."""
    index = next(i for i, case in enumerate(CASES) if case.interval == 1)
    expected = references()[index]
    checked = 0
    for rank in trained(2):
        for key, row, _, states in rank[index].shards:
            table = key.partition("/")[0]
            if table not in MANAGED:
                continue
            owned = set(expected.maps[table].row.values())
            size = len(states["accumulator"])
            for at in (r - row for r in expected.resets[table] if row <= r < row + size):
                sums = states["accumulator"][at]
                if at + row in owned:
                    wanted = expected.tables.sums[key][at + row]
                    torch.testing.assert_close(sums.double(), wanted, atol=1e-3, rtol=2e-3)
                    checked += 1
                else:
                    assert not sums.any()
    assert checked > 3
