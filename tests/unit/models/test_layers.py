import math

import pytest
import torch
from torch import nn

from prismrec.models.batch_norm import BatchNorm
from prismrec.models.domains import DomainMoments
from prismrec.models.layers import MLP, LayerNorm, Linear, MLPSpec, build_norm
from tests.unit.models.vectors import assert_close, copy_of


def randomise(module: nn.Module) -> nn.Module:
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        lambda copies: Linear(5, 4, copies),
        lambda copies: Linear(5, 4, copies, bias=False),
        lambda copies: LayerNorm(5, copies),
        lambda copies: BatchNorm(5, copies),
        lambda copies: MLP(5, (7, 6), copies, 0.0, "layer"),
        lambda copies: MLP(5, (7, 6), copies, 0.0, "batch"),
    ],
)
def test_stacked_equals_looped(build, training):
    torch.manual_seed(1)
    stacked = randomise(build(3)).train(training)
    singles = [copy_of(stacked, build(None).double(), m).train(training) for m in range(3)]
    x = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    looped_x = x.detach().clone().requires_grad_()
    out = stacked(x)
    looped = torch.stack([single(looped_x[m]) for m, single in enumerate(singles)])
    assert_close(out, looped)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    looped.backward(cotangent)
    assert_close(x.grad, looped_x.grad)
    for name, parameter in stacked.named_parameters():
        for m, single in enumerate(singles):
            assert_close(parameter.grad[m], single.get_parameter(name).grad)
    for name, buffer in stacked.named_buffers():
        for m, single in enumerate(singles):
            assert_close(buffer[m], single.get_buffer(name))


def test_fans_ignore_the_copies_and_copies_differ():
    torch.manual_seed(1)
    weight = Linear(100, 64, copies=8).weight
    bound = math.sqrt(6 / 164)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(weight.std() - bound / math.sqrt(3)) < 0.02 * bound
    distances = torch.cdist(weight.flatten(1), weight.flatten(1)) + torch.eye(8)
    assert distances.min() > 1e-3


def test_linear_by_hand():
    layer = Linear(2, 1, copies=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]]))
        layer.bias.copy_(torch.tensor([[0.5], [-1.0]]))
    x = torch.tensor([[[1.0, 1.0]], [[2.0, 4.0]]])
    assert layer(x).flatten().tolist() == [3.5, 1.0]


def test_zero_start():
    layer = Linear(3, 2, init="zero")
    assert not layer.weight.any()
    assert not layer.bias.any()


def test_mlp_by_hand():
    mlp = MLP(2, (2,), norm="none")
    with torch.no_grad():
        mlp.linears[0].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    assert mlp(torch.tensor([[3.0, 1.0]])).tolist() == [[2.0, 0.0]]


def test_mlp_without_layers_is_the_identity():
    x = torch.randn(3, 4)
    mlp = MLPSpec().build(4)
    assert mlp.out_dim == 4
    assert torch.equal(mlp(x), x)


def test_dropout_only_in_training():
    mlp = MLP(4, (1000,), dropout=0.5)
    x = torch.ones(1, 4)
    alive = (mlp.eval()(x) > 0).sum()
    assert 0 < (mlp.train()(x) > 0).sum() < 0.7 * alive


def test_no_norm_is_the_identity():
    x = torch.randn(3, 4)
    assert build_norm("none", 4)(x) is x


@pytest.mark.parametrize("steps", [1, 3])
def test_batch_norm_equals_torch(steps):
    torch.manual_seed(1)
    ours, theirs = BatchNorm(4).double(), nn.BatchNorm1d(4).double()
    for _ in range(steps):
        x = (torch.randn(8, 4, dtype=torch.float64) * 3 + 100).requires_grad_()
        y = x.detach().clone().requires_grad_()
        cotangent = torch.randn(8, 4, dtype=torch.float64)
        for module, value in ((ours, x), (theirs, y)):
            module.zero_grad()
            module(value).backward(cotangent)
        assert_close(x.grad, y.grad, 1e-9)
        assert_close(ours.weight.grad, theirs.weight.grad, 1e-9)
        assert_close(ours.bias.grad, theirs.bias.grad, 1e-9)
    assert_close(ours.running_mean, theirs.running_mean, 1e-9)
    assert_close(ours.running_var, theirs.running_var, 1e-9)
    x = torch.randn(8, 4, dtype=torch.float64)
    assert_close(ours.eval()(x), theirs.eval()(x), 1e-9)


@pytest.mark.parametrize("kind", ["batch", "domain"])
@pytest.mark.parametrize("copies", [None, 2])
def test_rows_that_do_not_count_leave_no_trace_in_the_moments(kind, copies):
    """Real rows come out, and move weights and moments, as if the others were not in the batch."""
    torch.manual_seed(1)
    lead = () if copies is None else (copies,)
    real, padding = torch.randn(*lead, 6, 4).double() * 3 + 2, torch.zeros(*lead, 10, 4).double()
    domain = torch.tensor([0, 1, 1, 0, 1, 1])
    build = {"batch": lambda: BatchNorm(4, copies), "domain": lambda: DomainMoments(4, 2, copies)}
    cotangent = torch.randn_like(real)

    def run(rows, counted):
        norm = build[kind]().double()
        norm.counted = counted
        x = rows.clone().requires_grad_()
        of_row = torch.cat([domain, torch.zeros(rows.shape[-2] - 6, dtype=torch.int64)])
        out = norm(x) if kind == "batch" else norm(x, of_row)
        out[..., :6, :].backward(cotangent)
        return out[..., :6, :], x.grad[..., :6, :], norm.running_mean, norm.running_var

    alone = run(real, None)
    counted = torch.tensor([True] * 6 + [False] * 10)
    for ours, expected in zip(run(torch.cat([real, padding], -2), counted), alone, strict=True):
        assert_close(ours, expected, 1e-9)
    with_padding = run(torch.cat([real, padding], -2), None)
    assert (with_padding[2] - alone[2]).abs().max() > 0.1


def test_a_batch_without_a_row_that_counts_moves_no_moment():
    norm = BatchNorm(3)
    norm.counted = torch.zeros(5, dtype=torch.bool)
    assert torch.isfinite(norm(torch.randn(5, 3))).all()
    assert not norm.running_mean.any()
    assert_close(norm.running_var, torch.ones(3), 0)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("copies", [None, 2])
def test_bfloat16_autocast_stays_near_float32(norm, copies):
    torch.manual_seed(1)
    mlp = MLP(16, (32,), copies, norm=norm)
    x = torch.randn(*((copies,) if copies else ()), 64, 16)
    exact = mlp(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mlp(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.06)
    rounded.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mlp.parameters())
