"""Jagged operations against hand computations and a loop over rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.embeddings.jagged import (
    from_padded,
    newest_first,
    offsets_of,
    row_of,
    seg_dot,
    seg_mean_weights,
    seg_softmax,
    seg_topk,
    seg_wsum,
    to_padded,
)
from tests.unit.models.vectors import assert_close

OFFSETS = torch.tensor([0, 2, 2, 5])


def _rows(values: Tensor, offsets: Tensor) -> list[Tensor]:
    return [values[start:stop] for start, stop in pairwise(offsets)]


def test_softmax_vector() -> None:
    scores = torch.tensor([0.2, -0.1, 0.7, 1.5, 0.0], dtype=torch.double)
    expected = [0.574443, 0.425557, 0.268664, 0.597922, 0.133414]
    assert_close(seg_softmax(scores, OFFSETS), expected, 1e-6)


def test_a_value_at_minus_infinity_has_no_weight_and_no_gradient() -> None:
    scores = torch.tensor([0.2, -torch.inf, 0.7, 1.5, 0.0], dtype=torch.double, requires_grad=True)
    weights = seg_softmax(scores, OFFSETS)
    assert weights[:2].tolist() == [1, 0]
    (weights * torch.arange(5)).sum().backward()
    assert scores.grad is not None
    assert scores.grad[:2].tolist() == [0, 0]
    assert scores.grad.isfinite().all()


def test_large_scores_do_not_overflow() -> None:
    weights = seg_softmax(torch.tensor([1e4, 1e4, -1e4, 0.0, 0.0]), OFFSETS)
    assert_close(weights, [0.5, 0.5, 0.0, 0.5, 0.5], 1e-6)


def test_sums_are_taken_in_float32() -> None:
    ones = torch.ones(4097, 1, dtype=torch.bfloat16)
    total = seg_wsum(torch.ones(4097, dtype=torch.bfloat16), ones, torch.tensor([0, 4097]))
    assert total.dtype == torch.float32
    assert total.item() == 4097  # bfloat16 would stop at 256


def test_where_rows_and_positions_lie() -> None:
    assert offsets_of(torch.tensor([2, 0, 3], dtype=torch.int32)).tolist() == [0, 2, 2, 5]
    assert row_of(OFFSETS, 5).tolist() == [0, 0, 2, 2, 2]
    assert newest_first(OFFSETS, 5).tolist() == [2, 1, 3, 2, 1]


def test_padding_keeps_the_newest() -> None:
    values = torch.tensor([[1.0], [2], [3], [4], [5]])
    padded, mask = to_padded(values, OFFSETS, 2)
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [4, 5]]
    assert mask.tolist() == [[True, True], [False, False], [True, True]]


def test_padding_on_either_side_gives_the_same_values() -> None:
    values = torch.arange(1.0, 6).unsqueeze(1)
    right, mask = to_padded(values, OFFSETS, 4)
    right = torch.where(mask.unsqueeze(-1), right, 99.0)
    for padded, where in ((right, mask), (right.flip(1), mask.flip(1))):
        found, offsets = from_padded(padded, where)
        assert offsets.tolist() == OFFSETS.tolist()
        expected = values if padded is right else torch.tensor([[2.0], [1], [5], [4], [3]])
        assert torch.equal(found, expected)


def test_padding_of_no_value_at_all() -> None:
    padded, mask = to_padded(torch.zeros(0, 3), torch.tensor([0, 0, 0]), 2)
    assert padded.shape == (2, 2, 3)
    assert not mask.any()


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [0, 1, 0, 0, 1]), (2, [1, 1, 0, 1, 1]), (9, [1, 1, 1, 1, 1])],
)
def test_the_largest_of_each_row_and_of_equals_the_later(k: int, expected: list[int]) -> None:
    scores = torch.tensor([3.0, 3.0, -2.0, 1.0, 1.0])
    assert seg_topk(scores, OFFSETS, k).int().tolist() == expected


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 99), st.booleans())
def test_as_a_loop_over_rows(lengths: list[int], seed: int, has_copies: bool) -> None:
    offsets = offsets_of(torch.tensor(lengths))
    generator, copies = torch.Generator().manual_seed(seed), (2,) if has_copies else ()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    values, queries = draw(sum(lengths), *copies, 3), draw(len(lengths), *copies, 3)
    products = seg_dot(values, queries, offsets)
    pooled = seg_wsum(seg_softmax(products, offsets), values, offsets)
    mean = seg_wsum(seg_mean_weights(offsets, len(values)), values.flatten(1), offsets)
    factor = draw(*pooled.shape).detach()
    found = torch.autograd.grad((pooled * factor).sum(), (values, queries))
    expected = []
    for row, query in zip(_rows(values, offsets), queries, strict=True):
        weights = torch.softmax((row * query).sum(-1), 0)
        expected.append((weights.unsqueeze(-1) * row).sum(0))
    torch.testing.assert_close(pooled, torch.stack(expected))
    wanted = torch.autograd.grad((torch.stack(expected) * factor).sum(), (values, queries))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    for row, of_row in zip(_rows(values.flatten(1), offsets), mean, strict=True):
        if len(row):
            torch.testing.assert_close(of_row, row.mean(0), atol=1e-6, rtol=0)
        else:
            assert not of_row.any()
