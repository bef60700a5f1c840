"""Why a field of few values takes dimensions from what it meets: rank of gradients, and a toy that collapses.

Source: "On the Embedding Collapse when Scaling up Recommendation Models" (ICML 2024), section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.analysis.spectra import spectrum
from prismrec.models.interactions import FmFMSpec, FMSpec
from prismrec.models.layers import MLPSpec

D1, D2, K, SAMPLES = 40, 30, 6, 4000
Logits = Callable[[Tensor], Tensor]


def _models() -> dict[str, Logits]:
    """By name, from field vectors X (B, 2, K) to logits (B,)."""
    fm, fmfm = FMSpec().build(2, K, None).double(), FmFMSpec().build(2, K, None).double()
    weight = torch.randn(2 * K).double()
    first, second = torch.randn(2 * K, 16).double(), torch.randn(16).double()
    dnn = MLPSpec((16,)).build(2 * K).double()
    return {
        "fm": lambda X: fm(X).sum(-1),
        "fmfm": lambda X: fmfm(X).sum(-1),
        "fm and a linear term": lambda X: fm(X).sum(-1) + X.flatten(1) @ weight,
        "fm and a linear dnn": lambda X: fm(X).sum(-1) + X.flatten(1) @ first @ second,
        "fm and a relu dnn": lambda X: fm(X).sum(-1) + dnn(X.flatten(1)) @ second,
    }


BOUNDS = {
    "fm": (1, 2, 6),
    "fmfm": (1, 2, 6),
    "fm and a linear term": (2, 3, 6),
    "fm and a linear dnn": (2, 3, 6),
    "fm and a relu dnn": (6, 6, 6),
}
"""Rank of the gradient of the first field's table where the second one's has rank 1, 2 and 6."""


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("at", range(3))
def test_the_gradient_of_a_table_has_no_more_dimensions_than_its_partner(
    name: str, at: int
) -> None:
    torch.manual_seed(3)
    rank = (1, 2, 6)[at]
    partner = torch.randn(D2, rank).double() @ torch.randn(rank, K).double()
    table = torch.randn(D1, K).double().requires_grad_()
    a, b = torch.randint(D1, (SAMPLES,)), torch.randint(D2, (SAMPLES,))
    labels = torch.randint(2, (SAMPLES,)).double()
    logits = _models()[name](torch.stack([table[a], partner[b]], 1))
    F.binary_cross_entropy_with_logits(logits, labels).backward()
    assert table.grad is not None
    assert int(torch.linalg.matrix_rank(table.grad, rtol=1e-9)) == BOUNDS[name][at]


def _trained_beside(num_values: int, seed: int) -> float:
    """Information abundance of a table of 100 rows after 60 steps beside a fixed one of so many values."""
    torch.manual_seed(seed)
    width, samples = 10, 20_000
    partner = torch.randn(num_values, width) / width**0.5
    table = (torch.randn(100, width) * 1e-3).requires_grad_()
    a, b = torch.randint(100, (samples,)), torch.randint(num_values, (samples,))
    labels = torch.randint(2, (samples,)).float()
    fm = FMSpec().build(2, width, None)
    for _ in range(60):
        logits = fm(torch.stack([table[a], partner[b]], 1)).sum(-1)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / 200
        (gradient,) = torch.autograd.grad(loss, table)
        with torch.no_grad():
            table -= 0.5 * gradient
    return spectrum(table).information_abundance


@pytest.mark.parametrize("seed", range(3))
def test_a_table_collapses_to_what_its_partner_spans(seed: int) -> None:
    found = {values: _trained_beside(values, seed) for values in (2, 3, 5, 100)}
    assert found[2] < found[3] < found[5] < found[100]
    assert all(found[values] <= values + 0.1 for values in (2, 3, 5))
    assert found[100] > 7
