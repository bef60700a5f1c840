"""Tables of drawn widths, layouts and optimizers on drawn bags, against the plain reference."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config.embedding import TableOptimizer
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec, TableSpec
from tests.helpers.ranks import run_ranks
from tests.helpers.sharded import Case, loss_of, train_case
from tests.helpers.tables import PlainTables

STEPS, BATCH = 5, 4
FORMS = (
    *((layout, rule) for layout in ("packed", "separate", "spread") for rule in ("sgd", "adagrad")),
    ("separate", "rowwise_adagrad"),
)
"""Layouts and optimizers that do not couple the sets."""


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    layout, rule = draw(st.sampled_from(FORMS))
    widths = draw(st.lists(st.sampled_from([4, 8, 64]), min_size=1, max_size=3))
    kind = "column_wise" if layout == "spread" else "table_wise"
    optimizer = TableOptimizer(name=rule, learning_rate=0.1)
    tables, bags_of = [], {}
    for name, rows in (("one", 1), ("several", draw(st.integers(2, 9)))):
        pooling = draw(st.sampled_from(["sum", "mean"]))
        tables.append(TableSpec(name, rows, (f"f-{name}",), pooling, layout, kind, optimizer))
        ids = st.sampled_from([0, rows - 1]) | st.integers(0, rows - 1)
        bags_of[f"f-{name}"] = st.lists(st.lists(ids, max_size=4), min_size=BATCH, max_size=BATCH)
    bags = tuple(draw(st.fixed_dictionaries(bags_of)) for _ in range(STEPS))
    sets = tuple(EmbeddingSet(f"s{index}", width, 0.1) for index, width in enumerate(widths))
    spec = EmbeddingSpec(sets, tuple(tables), tuple(bags_of), data_type="fp32", seed=3)
    return Case(spec, STEPS, BATCH, bags=bags)


@settings(derandomize=True, deadline=None, max_examples=25, database=None)
@given(_cases())
def _drawn_tables_equal_plain(case: Case) -> None:
    trained, plain = train_case(case), PlainTables(case.spec)
    for bags, outputs in zip(case.bags, trained.outputs, strict=True):
        sets = plain.lookup(bags)
        for got, expected in zip(outputs, sets, strict=True):
            torch.testing.assert_close(got.double(), expected.detach(), atol=3e-5, rtol=3e-5)
        plain.step(loss_of(sets, 0, BATCH))
    assert {shard.key for shard in trained.shards} == set(plain.weights)
    for shard in trained.shards:
        cols = slice(shard.col, shard.col + shard.weight.shape[1])
        expected = plain.weights[shard.key].detach()[:, cols]
        torch.testing.assert_close(shard.weight.double(), expected, atol=3e-5, rtol=3e-5)


def _draw_and_compare() -> None:
    """On one rank; `given` makes functions that do not pickle."""
    _drawn_tables_equal_plain()


def test_drawn_tables_equal_plain() -> None:
    run_ranks(_draw_and_compare, 1)
