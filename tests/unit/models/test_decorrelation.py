"""The losses between experts: numbers by hand, and what leaves them as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prismrec.models.decorrelation import (
    CorrelationSpec,
    CovarianceSpec,
    Decorrelation,
    DecorrelationSpec,
    RowsSpec,
)

SUM = RowsSpec(normalize="sum")
THREE_ROWS = torch.tensor([[[1, 0], [3, 1], [2, 5]], [[2, 1], [0, 1], [1, 4]]], dtype=torch.float64)
"""Two experts of width 2 on three rows; the cross-covariance times the rows is [[-2, 0], [-1, 9]]."""
FOUR_ROWS = torch.tensor(
    [[[1, 2], [2, 1], [3, 5], [4, 4]], [[2, 0], [1, 1], [4, 0], [3, 1]]], dtype=torch.float64
)
SPECS = {
    "covariance": CovarianceSpec(1.0),
    "covariance with own columns": CovarianceSpec(1.0, pairs="p>=q"),
    "fro_sq": CorrelationSpec(1.0, eps=1e-12),
    "fro": CorrelationSpec(1.0, "fro", eps=1e-12),
    "spectral": CorrelationSpec(1.0, "spectral", eps=1e-12),
    "l1": CorrelationSpec(1.0, "l1", eps=1e-12),
}
CORRELATIONS = [name for name, spec in SPECS.items() if isinstance(spec, CorrelationSpec)]


def loss(spec: DecorrelationSpec, experts: Tensor, counted: Tensor | None = None) -> Tensor:
    return Decorrelation(spec, len(experts), experts.shape[2]).double()(experts, counted)


def drawn(rows: int = 40, experts: int = 3, width: int = 4) -> Tensor:
    torch.manual_seed(1)
    base = torch.randn(experts, rows, width, dtype=torch.float64)
    return base + 0.5 * base[:1] + 2


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (CovarianceSpec(1.0, over=SUM), 3.0),
        (CovarianceSpec(1.0), 1.0),
        (CovarianceSpec(1.0, "p>=q", include_variance=True, over=SUM), 9.5),
        (CovarianceSpec(0.5, over=SUM), 1.5),
        (CorrelationSpec(1.0, "fro", eps=0.0, over=SUM), 1.0606601718),
        (CorrelationSpec(1.0, "fro", eps=0.0), 0.3535533906),
    ],
)
def test_three_rows_by_hand(spec, expected):
    assert loss(spec, THREE_ROWS).item() == pytest.approx(expected, abs=2e-10)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (CorrelationSpec(1.0, "fro_sq", eps=0.0), 0.41),
        (CorrelationSpec(1.0, "fro", eps=0.0, over=SUM), 1.280625),
        (CorrelationSpec(1.0, "spectral", eps=0.0, over=SUM), 1.158413),
        (CorrelationSpec(1.0, "l1", eps=0.0), 0.588348),
        (CovarianceSpec(1.0, over=SUM), 3.0),
    ],
)
def test_four_rows_by_hand(spec, expected):
    assert loss(spec, FOUR_ROWS).item() == pytest.approx(expected, abs=6e-7)


def plain_covariance(experts: Tensor) -> Tensor:
    """The covariance loss by its definition, a pair of experts and columns at a time."""
    num_experts, rows, width = experts.shape
    total = torch.zeros((), dtype=experts.dtype)
    for p in range(num_experts):
        for q in range(p):
            for i in range(width):
                for j in range(width):
                    a, b = experts[p, :, i], experts[q, :, j]
                    total = total + ((a - a.mean()) * (b - b.mean())).sum().abs()
    return total / width**2 / rows


def test_covariance_and_its_gradient_are_those_of_the_definition():
    ours, theirs = drawn().requires_grad_(), drawn().requires_grad_()
    value, expected = loss(CovarianceSpec(1.0), ours), plain_covariance(theirs)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", SPECS)
def test_shifts_of_columns_and_the_order_of_rows_do_not_matter(name):
    experts = drawn()
    value = loss(SPECS[name], experts)
    shifted = experts + torch.randn(3, 1, 4).double()
    torch.testing.assert_close(loss(SPECS[name], shifted), value)
    torch.testing.assert_close(loss(SPECS[name], experts[:, torch.randperm(40)]), value)
    torch.testing.assert_close(loss(SPECS[name], experts.flip(0)), value)


def test_covariance_grows_with_the_square_of_the_scale():
    value = loss(CovarianceSpec(1.0), drawn())
    torch.testing.assert_close(loss(CovarianceSpec(1.0), 3 * drawn()), 9 * value)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlation_knows_no_scale(name):
    experts = drawn()
    scaled = experts * (0.1 + torch.rand(3, 1, 4).double())
    torch.testing.assert_close(loss(SPECS[name], scaled), loss(SPECS[name], experts))


@pytest.mark.parametrize("name", CORRELATIONS)
def test_the_gradient_of_a_correlation_has_no_part_along_shift_or_scale(name):
    experts = drawn().requires_grad_()
    loss(SPECS[name], experts).backward()
    centred = experts.detach() - experts.detach().mean(1, keepdim=True)
    assert experts.grad.abs().max() > 1e-4
    assert experts.grad.sum(1).abs().max() < 1e-14
    assert (experts.grad * centred).sum(1).abs().max() < 1e-10


@pytest.mark.parametrize("name", [n for n in SPECS if n != "covariance with own columns"])
def test_orthogonal_columns_cost_nothing(name):
    first = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    second = torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)
    experts = torch.stack([first.view(4, 1), second.view(4, 1)])
    assert loss(SPECS[name], experts).item() == 0
    assert loss(SPECS[name], experts[:1]).item() == 0, "one expert has nobody to be like"
    assert loss(SPECS[name], torch.stack([experts[0], experts[0]])).item() > 0.5


@pytest.mark.parametrize("name", SPECS)
def test_a_constant_column_costs_nothing_and_has_a_finite_gradient(name):
    experts = drawn()
    experts[:, :, 1:] = 1.5
    spec = SPECS[name]
    if isinstance(spec, CorrelationSpec) and spec.norm != "spectral":
        spec = replace(spec, eps=1e-5)
        alone = loss(spec, experts[:, :, :1]) / (4 if spec.norm == "fro" else 16)
        torch.testing.assert_close(loss(spec, experts), alone * (1 if spec.norm != "fro" else 0.25))
    experts.requires_grad_()
    loss(replace(spec, **({"eps": 1e-5} if hasattr(spec, "eps") else {})), experts).backward()
    assert experts.grad.isfinite().all()


@pytest.mark.parametrize("name", SPECS)
def test_rows_that_do_not_count_are_as_if_they_were_not_there(name):
    experts = drawn()
    counted = (torch.arange(40) % 3 > 0).double()
    left = loss(SPECS[name], experts[:, counted > 0])
    experts[:, counted == 0] = 1e3
    torch.testing.assert_close(loss(SPECS[name], experts, counted), left)
    nobody = loss(SPECS[name], experts.requires_grad_(), torch.zeros(40))
    nobody.backward()
    assert nobody.item() == 0
    assert experts.grad.isfinite().all()


def test_some_rows_are_evenly_spaced():
    experts = drawn()
    spec = CovarianceSpec(1.0, over=RowsSpec(rows=4))
    torch.testing.assert_close(
        loss(spec, experts), loss(CovarianceSpec(1.0), experts[:, [0, 10, 20, 30]])
    )
    more = CovarianceSpec(1.0, over=RowsSpec(rows=512))
    assert torch.equal(loss(more, experts), loss(CovarianceSpec(1.0), experts))


def test_the_mean_over_pairs_does_not_grow_with_the_experts():
    experts = drawn()
    one = loss(CorrelationSpec(1.0), experts)
    torch.testing.assert_close(loss(CorrelationSpec(1.0, per_pair=True), experts), one / 3)


def test_fewer_rows_raise_the_floor_of_the_covariance():
    """Independent columns cost about sqrt(2 / (pi N)) each: so a weight belongs to a number of rows."""
    torch.manual_seed(1)
    experts = torch.randn(3, 2048, 8).double()
    whole = loss(CovarianceSpec(1.0), experts).item()
    shards = [loss(CovarianceSpec(1.0), part).item() for part in experts.split(256, 1)]
    assert whole == pytest.approx(3 * (2 / (torch.pi * 2048)) ** 0.5, rel=0.1)
    assert sum(shards) / 8 == pytest.approx(3 * (2 / (torch.pi * 256)) ** 0.5, rel=0.1)


def test_correlation_alone_drives_two_networks_apart():
    torch.manual_seed(1)
    nets = [nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2)]
    term = Decorrelation(CorrelationSpec(1.0), 2, 16)
    mean_abs = Decorrelation(CorrelationSpec(1.0, "l1"), 2, 16)
    x = torch.randn(1024, 16)
    optimizer = torch.optim.Adam([p for net in nets for p in net.parameters()], 1e-2)
    before = mean_abs(torch.stack([net(x) for net in nets]), None).item()
    for _ in range(200):
        optimizer.zero_grad()
        term(torch.stack([net(x) for net in nets]), None).backward()
        optimizer.step()
    after = mean_abs(torch.stack([net(x) for net in nets]), None).item()
    assert before > 0.1
    assert after < 0.05
