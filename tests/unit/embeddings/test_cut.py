"""Sets cut out of pooled columns, against indexing by hand, and the gradient against autograd's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.embeddings.cut import Run, cut_sets, make_cut

Sets = list[tuple[int, list[int]]]
"""d_m and first columns of every set."""

PACKED: Sets = [(4, [0, 12, 24]), (8, [4, 16, 28])]
"""Rows of 4 + 8 columns for three fields."""


def _indexed(columns: Tensor, sets: Sets) -> list[Tensor]:
    """The same by slices and autograd."""
    return [
        torch.stack([columns[:, start : start + dim] for start in starts], dim=1)
        for dim, starts in sets
    ]


def test_packed_sets_are_one_run_each_and_share_the_memory() -> None:
    cut = make_cut(PACKED, 36)
    assert cut.runs == ((Run(0, 1, 0, 12, 3, 4),), (Run(0, 1, 4, 12, 3, 8),))
    assert cut.is_whole
    columns = torch.arange(72.0).view(2, 36)
    first, second = cut_sets(columns, cut)
    assert first[1, 2].tolist() == [60, 61, 62, 63]
    assert second[0, 1].tolist() == [16, 17, 18, 19, 20, 21, 22, 23]
    columns[0, 16] = -1
    assert second[0, 1, 0] == -1


def test_fields_of_two_ranks_are_two_runs_however_many_they_are() -> None:
    sets = [(4, [8 * (field // 2) + 80 * (field % 2) for field in range(20)])]
    cut = make_cut(sets, 160)
    assert cut.runs == ((Run(0, 2, 0, 8, 10, 4), Run(1, 2, 80, 8, 10, 4)),)
    assert not cut.is_whole
    columns = torch.randn(3, 160)
    assert torch.equal(cut_sets(columns, cut)[0], _indexed(columns, sets)[0])


def test_the_gradient_of_one_set_alone_is_that_set_s_memory() -> None:
    columns = torch.randn(2, 12, requires_grad=True)
    (only,) = cut_sets(columns, make_cut([(4, [0, 4, 8])], 12))
    given_gradient = torch.randn(2, 3, 4)
    (gradient,) = torch.autograd.grad(only, columns, given_gradient)
    assert gradient.data_ptr() == given_gradient.data_ptr()
    assert torch.equal(gradient, given_gradient.view(2, 12))


@pytest.mark.parametrize("used", [(), (0,), (1,), (0, 1)], ids=str)
def test_columns_that_got_no_gradient_have_zeros(used: tuple[int, ...]) -> None:
    columns = torch.randn(2, 40, requires_grad=True)  # the last four belong to no set
    sets = cut_sets(columns, make_cut(PACKED, 40))
    loss = sum(((m + 1) * sets[m].square().sum() for m in used), columns[:, 39].sum())
    loss.backward()
    expected = torch.zeros(2, 40)
    expected[:, 39] = 1
    for m in used:
        dim, starts = PACKED[m]
        for start in starts:
            part = slice(start, start + dim)
            expected[:, part] = 2 * (m + 1) * columns.detach()[:, part]
    assert torch.equal(columns.grad, expected)


@st.composite
def _cuts(draw: st.DrawFn) -> tuple[Sets, int]:
    """Vectors of one to three sets anywhere, none over another, in any order of the fields."""
    dims = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))
    fields = draw(st.lists(st.integers(1, 7), min_size=len(dims), max_size=len(dims)))
    vectors = [(m, n) for m, count in enumerate(fields) for n in range(count)]
    sets: Sets = [(dim, [0] * count) for dim, count in zip(dims, fields, strict=True)]
    at = 0
    for m, n in draw(st.permutations(vectors)):
        at += draw(st.integers(0, 1))
        sets[m][1][n] = at
        at += dims[m]
    return sets, at + draw(st.integers(0, 1))


@given(_cuts())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_cut_and_its_gradient_are_those_of_slices(drawn: tuple[Sets, int]) -> None:
    sets, width = drawn
    torch.manual_seed(width)
    columns = torch.randn(3, width, requires_grad=True)
    cut, expected = cut_sets(columns, make_cut(sets, width)), _indexed(columns, sets)
    assert all(map(torch.equal, cut, expected))
    weights = [torch.randn_like(each) for each in expected]
    gradients = [torch.autograd.grad(each, columns, weights)[0] for each in (cut, expected)]
    assert torch.equal(*gradients)


def test_columns_of_a_transposed_tensor() -> None:
    columns = torch.randn(36, 2).t().requires_grad_()
    cut, expected = cut_sets(columns, make_cut(PACKED, 36)), _indexed(columns, PACKED)
    assert all(map(torch.equal, cut, expected))
    torch.stack([each.square().sum() for each in cut]).sum().backward()
    assert torch.equal(columns.grad, 2 * columns.detach())
