"""The stored form of tables and the lookup over it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.config import UserError
from prismrec.embeddings.sets import EmbeddingSet, TableSpec
from prismrec.serving.tables import FeatureRows, TableLookup, TableType, encode_table
from tests.unit.serving.world import AME, TWO, World, make_world

# Largest error of a number over the range of its row: half a step of 2^bits - 1 steps, and the
# rounding of scale and offset to half precision (2^-11 of each, the scale once per step).
RELATIVE = {
    "fp32": 0.0,
    "fp16": 2**-11,
    "bf16": 2**-8,
    "int8": 0.5 / 255 + 2**-10,
    "int4": 0.5 / 15 + 2**-10,
}


def test_an_int8_row_is_a_scale_an_offset_and_steps() -> None:
    stored = encode_table(torch.tensor([[-1.0, 0.0, 1.0, 1.55]]), "int8", "t/s")
    scale, offset = stored[0, :4].view(torch.float16).tolist()
    assert offset == -1.0
    assert scale == pytest.approx(2.55 / 255, rel=1e-3)
    assert stored[0, 4:].tolist() == [0, 100, 200, 255]


def test_fp32_rows_are_the_bytes_of_the_weights() -> None:
    weight = torch.randn(3, 4)
    assert encode_table(weight, "fp32", "t/s").view(torch.float32).equal(weight)


@pytest.mark.parametrize(
    ("value", "table_type", "expected"),
    [
        (float("nan"), "fp32", r"table 'users/wide': its largest value is nan"),
        (float("inf"), "int8", r"is inf, which int8 cannot hold"),
        (7e4, "fp16", r"is 70000, which fp16 cannot hold .below 65504.*export.table_type = 'fp32'"),
    ],
)
def test_numbers_that_do_not_fit_are_named(
    value: float, table_type: TableType, expected: str
) -> None:
    weight = torch.zeros(2, 4)
    weight[1, 2] = value
    with pytest.raises(UserError, match=expected):
        encode_table(weight, table_type, "users/wide")


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=3, max_size=3),
    st.sampled_from(["fp32", "fp16", "bf16", "int8", "int4"]),
    st.sampled_from([TWO, AME]),
    st.integers(0, 3),
)
def test_lookup_equals_a_plain_sum(
    bags: list[list[int]], table_type: TableType, sets: Any, seed: int
) -> None:
    """Weighted sums and means, empty bags, a table shared by two features, sets of some features."""
    world = make_world(embedding={"sets": sets})
    generator = torch.Generator().manual_seed(seed)
    lookup = _lookup(world, table_type)
    lengths = torch.tensor([len(bag) for bag in bags])
    flat = torch.tensor([each for bag in bags for each in bag], dtype=torch.int64)
    weights = torch.rand(len(flat), generator=generator)
    single = FeatureRows(torch.tensor([0, 4, 5]), torch.ones(3, dtype=torch.int64))
    features = [single, single, FeatureRows(flat, lengths, weights), FeatureRows(flat, lengths)]
    by_name = dict(zip(world.spec.fields, features, strict=True))
    for each, set_ in zip(lookup(features), world.spec.sets, strict=True):
        names = world.spec.fields_of(set_)
        assert each.shape == (3, len(names), set_.dim)
        for row in range(3):
            for field, name in enumerate(names):
                table = world.spec.table_of(name)
                weight = world.tables[table.name, set_.name]
                is_mean = (set_.pooling or table.pooling) == "mean"
                expected, bound = _plain(weight, by_name[name], row, is_mean)
                error = (each[row, field] - expected).abs().max()
                assert error <= bound * RELATIVE[table_type] + 1e-6


def _lookup(world: World, table_type: TableType) -> TableLookup:
    reads = Counter()

    def read(table: TableSpec, each: EmbeddingSet) -> Tensor:
        reads[table.name, each.name] += 1
        return encode_table(world.tables[table.name, each.name], table_type, table.name)

    lookup = TableLookup(world.spec, table_type, read)
    assert reads == dict.fromkeys(world.tables, 1), "every set of every table once, and no more"
    return lookup


def test_sets_that_are_pooled_alike_are_views_of_one_lookup() -> None:
    """`means` pools otherwise, `half` and `sums` cover less; an id is looked up once for the rest."""
    world = make_world(embedding={"sets": AME})
    single = FeatureRows(torch.tensor([0, 1]), torch.ones(2, dtype=torch.int64))
    wide, half, means, sums, quick, linear = _lookup(world, "fp32")([single] * 4)
    # columns: wide, quick, linear of 4 fields; half of 3; means of 4; sums of 2
    row = 4 * (8 + 8 + 4) + 3 * 4 + 4 * 12 + 2 * 4
    strides = {"wide": 20, "half": 4, "means": 12, "sums": 4, "quick": 20, "linear": 20}
    views = {"wide": wide, "half": half, "means": means, "sums": sums, "quick": quick}
    for name, view in {**views, "linear": linear}.items():
        assert view.stride() == (row, strides[name], 1), name
        assert view.untyped_storage().data_ptr() == wide.untyped_storage().data_ptr()


def _plain(weight: Tensor, feature: FeatureRows, row: int, is_mean: bool) -> tuple[Tensor, float]:
    """The pooled vector, and the summed range of its rows (for the error of quantised ones)."""
    start = int(feature.lengths[:row].sum())
    stop = start + int(feature.lengths[row])
    total, spread = torch.zeros(weight.shape[1]), 0.0
    for position in range(start, stop):
        factor = 1.0 if feature.weights is None else float(feature.weights[position])
        vector = weight[feature.rows[position]]
        total += factor * vector
        spread += factor * (float(vector.max() - vector.min()) + float(vector.abs().max()))
    count = max(stop - start, 1) if is_mean else 1
    return total / count, spread / count


def test_no_rows_give_empty_vectors() -> None:
    world = make_world()
    lookup = _lookup(world, "int8")
    none = FeatureRows(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert [tuple(each.shape) for each in lookup([none] * 4)] == [(0, 4, 8), (0, 4, 4), (0, 4, 4)]
    assert lookup.num_bytes == (6 + 8 + 5) * ((8 + 4) + (4 + 4) + (4 + 4))
