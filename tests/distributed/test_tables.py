"""What layouts, rates and initial weights come to: packed as separate, coupling, schedules."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from prismrec.config import UserError
from prismrec.config.embedding import TableOptimizer
from prismrec.config.train import Schedule
from prismrec.embeddings.access import initialize
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.plan import Placement
from prismrec.embeddings.plan.rules import ways
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from prismrec.embeddings.shards import LocalShard
from tests.helpers.sharded import Case, Trained, draw, loss_of
from tests.helpers.shared_ranks import trained
from tests.helpers.tables import PlainTables, make_spec, whole_tables

KINDS = ("table_wise", "row_wise", "column_wise")


def _alike(layout: str, rules: tuple[str, ...], strong: float = 0.1) -> EmbeddingSpec:
    """Tables of every kind and rule with two sets, whose names do not tell the layout.

    Args:
        layout: of all tables.
        rules: optimizers.
        strong: deviation of the initial weights of the first set, and so the size of its term in the
            loss.
    """
    tables = tuple(
        TableSpec(
            f"{kind}-{rule}",
            9,
            (f"{kind}-{rule}-a", f"{kind}-{rule}-b"),
            "sum",
            layout,
            kind,
            TableOptimizer(name=rule, learning_rate=0.1),
        )
        for kind, rule in itertools.product(KINDS, rules)
    )
    fields = tuple(feature for table in tables for feature in table.features)
    sets = (EmbeddingSet("first", 8, strong), EmbeddingSet("second", 4, 0.1))
    return EmbeddingSpec(sets, tables, fields, data_type="fp32", seed=3)


def _two_rates() -> EmbeddingSpec:
    """Tables whose rates differ by table and by set: fused, and whole on every rank."""
    tables = tuple(
        TableSpec(f"{kind}-{rule}", 9, (f"{kind}-{rule}",), "sum", "packed", kind, optimizer)
        for kind, rule, rate in (
            ("table_wise", "sgd", 0.1),
            ("row_wise", "sgd", 0.3),
            ("row_wise", "adagrad", 0.05),
            ("data_parallel", "adagrad", 0.2),
            ("data_parallel", "sgd", 0.15),
            ("data_parallel", "adam", 0.02),
        )
        for optimizer in (TableOptimizer(name=rule, learning_rate=rate),)
    )
    fields = tuple(feature for table in tables for feature in table.features)
    sets = (EmbeddingSet("usual", 8, 0.1), EmbeddingSet("slow", 4, 0.1, learning_rate=0.01))
    return EmbeddingSpec(sets, tables, fields, data_type="fp32", seed=3)


ELEMENT_WISE = ("sgd", "adagrad")
SCHEDULE = Schedule(warmup_steps=2, decay="linear", decay_steps=4, min_factor=0.2)
FACTORS = (0.5, 1.0, 1.0, 0.8, 0.6)
"""Of the five steps, by hand."""
CASES = {
    "packed": Case(_alike("packed", ELEMENT_WISE)),
    "separate": Case(_alike("separate", ELEMENT_WISE)),
    "coupled": Case(_alike("packed", ("rowwise_adagrad",)), steps=2),
    "coupled to a strong one": Case(_alike("packed", ("rowwise_adagrad",), 3.0), steps=2),
    "alone": Case(_alike("separate", ("rowwise_adagrad",)), steps=2),
    "beside a strong one": Case(_alike("separate", ("rowwise_adagrad",), 3.0), steps=2),
    "rates": Case(_two_rates(), schedule=SCHEDULE, clip_norm=1e-6),
}


def cases(world_size: int) -> list[Case]:
    """See `tests.helpers.shared_ranks`."""
    return list(CASES.values()) if world_size == 2 else []


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, list[Trained]]:
    """By case, what both ranks came to."""
    ranks = trained(2, "test_tables")
    return {name: [rank[index] for rank in ranks] for index, name in enumerate(CASES)}


def _weights(ranks: list[Trained], set_name: str) -> dict[tuple[int, str, int, int], torch.Tensor]:
    """A set's columns on each rank, of tables that lie on the same ranks in every layout."""
    return {
        (rank, shard.table, shard.row, shard.col + col): shard.weight[:, col]
        for rank, of_rank in enumerate(ranks)
        for shard in of_rank.shards
        if shard.set_name == set_name and shard.table.startswith("row_wise")
        for col in range(shard.weight.shape[1])
    }


def test_packed_and_separate_agree_to_the_bit(two_ranks: dict[str, list[Trained]]) -> None:
    packed, separate = two_ranks["packed"], two_ranks["separate"]
    for mine, other in zip(packed, separate, strict=True):
        for step, sets in enumerate(mine.outputs):
            for ours, theirs in zip(sets, other.outputs[step], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        # one step sees no sum over sets: there nothing may differ at all
        for ours, theirs in zip(mine.outputs[1], other.outputs[1], strict=True):
            assert torch.equal(ours, theirs)


def test_row_wise_adagrad_couples_packed_sets_and_no_others(
    two_ranks: dict[str, list[Trained]],
) -> None:
    coupled, alone = (
        [_weights(two_ranks[case], "second") for case in cases]
        for cases in (
            ("coupled", "coupled to a strong one"),
            ("alone", "beside a strong one"),
        )
    )
    assert alone[0]
    for key, weights in alone[0].items():
        assert torch.equal(weights, alone[1][key])
    initial = whole_tables(CASES["coupled"].spec)
    for (_, table, row, col), weights in coupled[0].items():
        stronger = coupled[1][_, table, row, col]
        start = initial[f"{table}/second"][row : row + len(weights), col]
        moved, moved_less = (weights - start).abs().sum(), (stronger - start).abs().sum()
        assert moved_less < 0.7 * moved, "the strong set's squares slow this one's steps"


def test_every_rate_follows_the_schedule(two_ranks: dict[str, list[Trained]]) -> None:
    spec, ranks = CASES["rates"].spec, two_ranks["rates"]
    plain, steady = PlainTables(spec), PlainTables(spec)
    for step, factor in enumerate(FACTORS):
        sets = plain.lookup(*draw(spec, step))
        for m, expected in enumerate(sets):
            got = torch.cat([rank.outputs[step][m] for rank in ranks])
            torch.testing.assert_close(got.double(), expected.detach(), atol=5e-6, rtol=5e-6)
        plain.step(loss_of(sets, 0), factor)
        steady.step(loss_of(steady.lookup(*draw(spec, step)), 0))
    for shard in (shard for rank in ranks for shard in rank.shards):
        rows, cols = shard.weight.shape
        block = (slice(shard.row, shard.row + rows), slice(shard.col, shard.col + cols))
        expected = plain.weights[shard.key].detach()[block]
        torch.testing.assert_close(shard.weight.double(), expected, atol=5e-6, rtol=5e-6)
        assert (shard.weight - steady.weights[shard.key].detach()[block]).abs().max() > 1e-4


def test_initial_weights_do_not_depend_on_the_block() -> None:
    spec = make_spec()
    whole = whole_tables(spec)["user/wide"]
    part = LocalShard("user", "wide", 11, 8, 3, 4, torch.empty(8, 4))
    initialize([part], spec)
    assert torch.equal(part.weight, whole[3:, 4:])
    assert (whole[-1] == 0).all(), "the unknown row starts at zero"
    assert 0.05 < whole[:-1].std() < 0.2


@pytest.mark.parametrize("kind", ["column_wise", "table_column_wise", "grid", "data_parallel"])
def test_placements_that_would_change_the_numbers_are_refused(kind: str) -> None:
    spec, placement = (
        make_spec("separate", kind, "rowwise_adagrad"),
        Placement(4, 2, "cpu", 2**30, 4),
    )
    with pytest.raises(UserError, match=f"'{kind}'"):
        ways(physical_tables(spec)[0], spec, placement, in_host_memory=False)
    if kind != "data_parallel":
        allowed = replace(spec, allow_coupled_sets=True)
        assert ways(physical_tables(allowed)[0], allowed, placement, in_host_memory=False)
