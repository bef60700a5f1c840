"""Sharded tables against a plain reference: every kind, layout, optimizer, type, width and number of
ranks.

A whole cross product is one collection: a table for each cell, all of them trained together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from prismrec.config.embedding import TableOptimizer
from prismrec.config.placement import COLUMN_KINDS, KINDS
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.sharded import Case, Trained, draw, loss_of, places, together
from tests.helpers.shared_ranks import trained
from tests.helpers.tables import Piece, PlainTables

WORLDS = {1: 1, 2: 1, 4: 2}
"""Numbers of ranks, each with the number of machines they pretend to be on."""
RULES = ("sgd", "adagrad", "rowwise_adagrad")


def _table(cell: str, rows: int, layout: str, kind: str, rule: str, features: int = 2) -> TableSpec:
    names = tuple(f"{cell}.{index}".replace(".", "-") for index in range(features))
    optimizer = TableOptimizer(name=rule, learning_rate=0.1)
    return TableSpec(cell, rows, names, "sum", layout, kind, optimizer)


def _spec(
    sets: tuple[EmbeddingSet, ...], tables: list[TableSpec], **options: object
) -> EmbeddingSpec:
    fields = tuple(feature for table in tables for feature in table.features)
    return EmbeddingSpec(sets, tuple(tables), fields, seed=3, allow_coupled_sets=True, **options)


def cross(data_type: str = "fp32") -> EmbeddingSpec:
    """Every kind x layout x optimizer, and a table of one row for every kind.

    Three sets: one wider than the other two, one for half of the features, one with a pooling of
    its own. fp32 bags are weighted, fp16 ones are not.
    """
    tables = []
    for rule in RULES:
        for kind in KINDS:
            if kind == "data_parallel" and (rule == "rowwise_adagrad" or data_type == "fp16"):
                continue
            tables += [
                _table(f"{kind}-{layout}-{rule}", 11, layout, kind, rule)
                for layout in ("packed", "separate")
            ]
            if rule != "rowwise_adagrad":
                tables.append(_table(f"{kind}-one-{rule}", 1, "packed", kind, rule, features=1))
        tables += [
            _table(f"spread-{kind}-{rule}", 11, "spread", kind, rule) for kind in COLUMN_KINDS
        ]
    tables.append(
        _table("row_wise-one-rowwise_adagrad", 1, "packed", "row_wise", "rowwise_adagrad", 1)
    )
    some = tuple(feature for table in tables for feature in table.features[:1])
    sets = (
        EmbeddingSet("wide", 8, 0.1),
        EmbeddingSet("part", 4, 0.2, features=some),
        EmbeddingSet("mean", 4, 0.2, pooling="mean"),
    )
    return _spec(sets, tables, data_type=data_type, is_weighted=data_type == "fp32")


def widths() -> EmbeddingSpec:
    """Sets of 4, 8, 64 and 1,024 columns under every kind; `spread` rows are wider than any shard."""
    tables = [
        _table(f"{kind}-separate-adagrad", 6, "separate", kind, "adagrad", features=1)
        for kind in KINDS
    ]
    tables += [
        _table("spread-wide-adagrad", 6, "spread", "column_wise", "adagrad", features=1),
        _table("table_wise-packed-sgd", 6, "packed", "table_wise", "sgd", features=1),
    ]
    most = tuple(f for table in tables[:-1] for f in table.features)
    sets = (
        EmbeddingSet("w4", 4, 0.1),
        EmbeddingSet("w8", 8, 0.1),
        EmbeddingSet("w64", 64, 0.1),
        EmbeddingSet("w1024", 1024, 0.1, features=most),
    )
    return _spec(sets, tables, data_type="fp32")


def own() -> EmbeddingSpec:
    """Sets with an optimizer, a learning rate, a pooling and a type of their own, of unequal widths."""
    kinds = [kind for kind in KINDS if kind != "data_parallel"]
    tables = [_table(f"{kind}-own-adagrad", 9, "packed", kind, "adagrad") for kind in kinds]
    tables.append(_table("spread-own-adagrad", 9, "spread", "column_wise", "adagrad"))
    slow = TableOptimizer(name="adagrad", learning_rate=0.05)
    tables = [replace(table, optimizer=slow) for table in tables]
    some = tuple(feature for table in tables for feature in table.features[1:])
    clipped = TableOptimizer(name="sgd", learning_rate=0.2, clip=0.05)
    sets = (
        EmbeddingSet("plain", 8, 0.1),
        EmbeddingSet("beside", 4, 0.1),
        EmbeddingSet("sgd", 12, 0.1, optimizer=clipped),
        EmbeddingSet("rate", 4, 0.1, learning_rate=0.02),
        EmbeddingSet("mean", 4, 0.1, pooling="mean", features=some),
        EmbeddingSet("half", 16, 0.1, data_type="fp16", features=some),
    )
    return _spec(sets, tables, data_type="fp32", is_weighted=True)


SPECS: dict[str, Callable[[], EmbeddingSpec]] = {
    "cross": cross,
    "half": lambda: cross("fp16"),
    "widths": widths,
    "own": own,
}


@dataclass(frozen=True)
class Expected:
    """What the reference came to.

    Args:
        outputs: by step, the tensors (B, N_m, d_m) of the sets.
        tables: itself, after the last step.
    """

    outputs: list[list[torch.Tensor]]
    tables: PlainTables


@cache
def _expected(name: str, world: int) -> Expected:
    spec = SPECS[name]()
    return expected_of(spec, together(spec, places(spec, world, WORLDS[world])))


def expected_of(spec: EmbeddingSpec, pieces: list[list[Piece]]) -> Expected:
    """Train a specification in the plain reference.

    Args:
        spec: sets and tables.
        pieces: what shares a row-wise accumulator, see `PlainTables`.
    """
    plain = PlainTables(spec, pieces)
    outputs = []
    for step in range(5):
        sets = plain.lookup(*draw(spec, step))
        outputs.append([each.detach() for each in sets])
        plain.step(loss_of(sets, 0))
    return Expected(outputs, plain)


def cases(world_size: int) -> list[Case]:
    """See `tests.helpers.shared_ranks`."""
    return [Case(make(), hosts=WORLDS[world_size]) for make in SPECS.values()]


CELLS = [
    pytest.param(world, name, table.name, id=f"{world}-{name}-{table.name}")
    for world in WORLDS
    for name, make in SPECS.items()
    for table in make().tables
]


@pytest.mark.parametrize(("world", "name", "table"), CELLS)
def test_sharded_equals_plain(world: int, name: str, table: str) -> None:
    expected, index = _expected(name, world), list(SPECS).index(name)
    ranks = [results[index] for results in trained(world, "test_kinds")]
    check_table(ranks, expected, table)


def check_table(ranks: list[Trained], expected: Expected, table: str) -> None:
    """Hold what the ranks found of a table in every set to the reference."""
    spec, plain = expected.tables.spec, expected.tables
    (of_table,) = [each for each in spec.tables if each.name == table]
    for m, each in enumerate(spec.sets):
        if not any(each.covers(f) for f in of_table.features):
            continue
        form = spec.form(of_table, each)
        # fp16 weights are rounded once a step, to 2^-11 of themselves; they stay below 2
        bound = 5 * 2**-10 if form.data_type == "fp16" else 1e-5
        columns = [i for i, f in enumerate(spec.fields_of(each)) if f in of_table.features]
        for step, outputs in enumerate(expected.outputs):
            got = torch.cat([rank.outputs[step][m][:, columns] for rank in ranks])
            assert got.dtype == torch.float32
            _close(got, outputs[m][:, columns], 3 * bound, f"{each.name}, step {step}")
        _check_blocks(ranks, plain, f"{table}/{each.name}", bound)


def _check_blocks(ranks: list[Trained], plain: PlainTables, key: str, bound: float) -> None:
    covered = torch.zeros_like(plain.weights[key])
    optimizer = plain.forms[key].optimizer.name
    for shard in (shard for rank in ranks for shard in rank.shards if shard.key == key):
        rows, cols = shard.weight.shape
        block = (slice(shard.row, shard.row + rows), slice(shard.col, shard.col + cols))
        covered[block] += 1
        _close(shard.weight, plain.weights[key].detach()[block], bound, f"weight of {key}")
        assert set(shard.states) == (set() if optimizer == "sgd" else {"accumulator"})
        for state in shard.states.values():
            sums = plain.sums[key][block]
            _close(state, sums if state.dim() == 2 else sums[:, 0], 10 * bound, f"sum of {key}")
    copies = len(ranks) if key.startswith("data_parallel") else 1
    assert (covered == copies).all()


def _close(got: torch.Tensor, expected: torch.Tensor, bound: float, what: str) -> None:
    torch.testing.assert_close(
        got.double(), expected, atol=bound, rtol=bound, msg=lambda text: f"{what}: {text}"
    )


def test_the_clip_among_them_is_at_work() -> None:
    spec = own()
    loose = TableOptimizer(name="sgd", learning_rate=0.2)
    sets = tuple(replace(s, optimizer=loose) if s.name == "sgd" else s for s in spec.sets)
    clipped, unclipped = PlainTables(spec), PlainTables(replace(spec, sets=sets))
    for plain in (clipped, unclipped):
        plain.step(loss_of(plain.lookup(*draw(spec, 0)), 0))
    for table in spec.tables:
        key = f"{table.name}/sgd"
        assert (clipped.weights[key] - unclipped.weights[key]).abs().max() > 1e-2
