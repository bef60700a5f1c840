import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.models import Inputs
from prismrec.models.domains import (
    DomainLinear,
    DomainMLP,
    DomainMoments,
    DomainTowers,
    of_domain,
    parameters_of,
)
from prismrec.models.layers import MLP, MLPSpec
from prismrec.models.towers import TaskTowers
from tests.unit.models.vectors import assert_close

DOMAIN = torch.tensor([2, 0, 1, 0, 2, 2, 0])
"""Domains of seven rows."""


def drawn(module, seed: int = 0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def of(domain: Tensor) -> Inputs:
    """What a model is given, of which towers read the domains alone."""
    return Inputs([], None, domain.new_zeros(len(domain), 0), domain)


def rows(*shape: int) -> Tensor:
    torch.manual_seed(7)
    return torch.randn(*shape, len(DOMAIN), 5, dtype=torch.float64, requires_grad=True)


def test_a_row_takes_the_branch_of_its_domain():
    branches = torch.arange(12.0).view(2, 3, 2)
    assert of_domain(branches, torch.tensor([1, 2])).tolist() == [[2, 3], [10, 11]]
    both = torch.stack([branches, -branches])
    assert of_domain(both, torch.tensor([0, 1])).tolist() == [[[0, 1], [8, 9]], [[0, -1], [-8, -9]]]
    assert parameters_of(branches, torch.tensor([1, 1])).shape == (3, 2, 2)


@pytest.mark.parametrize("copies", [None, 4])
def test_a_domains_linear_map_is_that_of_its_rows_alone(copies):
    layer = drawn(DomainLinear(5, 3, 3, copies))
    x = rows(*[copies] * (copies is not None))
    out = layer(x, DOMAIN)
    for b, s in enumerate(DOMAIN.tolist()):
        weight, bias = layer.weight[s], layer.bias[s]
        assert_close(out[..., b, :], (weight @ x[..., b, :, None]).squeeze(-1) + bias)
    assert_close(DomainLinear(5, 3, 2, is_zero=True).weight, torch.zeros(2, 3, 5))


def test_each_domains_matrix_is_drawn_by_itself_from_its_own_fan():
    weight = DomainLinear(6, 10, 3, 2).weight
    bound = (6 / 16) ** 0.5
    assert bound * 0.9 < weight.abs().max() <= bound
    assert len({tuple(each.flatten().tolist()) for each in weight.flatten(0, 1)}) == 6


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("num_tasks", [1, 2])
def test_domain_towers_are_one_models_towers_for_each_domain(norm, num_tasks):
    spec = MLPSpec((6, 4), norm=norm)
    towers = drawn(DomainTowers(5, spec, num_tasks, 3))
    h = torch.randn(len(DOMAIN), num_tasks, 5, dtype=torch.float64)
    together = towers(h, of(DOMAIN))
    for s in range(3):
        single = TaskTowers(5, spec, num_tasks).double()
        pick = {
            name.replace("body.norms.0.scale", "body.norms.0").replace(
                "body.norms.1.scale", "body.norms.1"
            ): value[s]
            for name, value in towers.named_parameters()
            if name != "head.bias"
        }
        missing = single.load_state_dict(pick, strict=False)
        assert not missing.unexpected_keys
        assert all("running" in key for key in missing.missing_keys)
        own = Inputs([], None, h[s == DOMAIN])
        expected = single(h[s == DOMAIN], own) + towers.head.bias[s].flatten()
        assert_close(together[s == DOMAIN], expected, 1e-9)


def test_one_vector_for_all_tasks_is_read_by_each_of_them():
    towers = drawn(DomainTowers(5, MLPSpec((4,), norm="layer"), 2, 3))
    h = torch.randn(len(DOMAIN), 1, 5, dtype=torch.float64)
    assert_close(towers(h, of(DOMAIN)), towers(h.expand(-1, 2, -1), of(DOMAIN)))


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_only_its_own_rows_train_a_domains_tower(norm):
    towers = drawn(DomainTowers(5, MLPSpec((6, 4), norm=norm), 2, 4))
    h = torch.randn(len(DOMAIN), 2, 5, dtype=torch.float64, requires_grad=True)
    towers(h, of(DOMAIN))[DOMAIN == 2].square().sum().backward()
    for name, parameter in towers.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad[2].abs().sum() > 0, name
        assert not parameter.grad[[0, 1, 3]].any(), name
    assert not h.grad[DOMAIN != 2].any()
    assert h.grad[DOMAIN == 2].any()


def test_moments_are_those_of_each_domains_own_batch():
    moments, x = DomainMoments(5, 4).double(), rows()
    out = moments(x, DOMAIN)
    for s in (0, 2):
        own = x[s == DOMAIN]
        expected = F.batch_norm(own, None, None, training=True)
        assert_close(out[s == DOMAIN], expected, 1e-9)
        assert_close(moments.running_mean[s], 0.1 * own.mean(0), 1e-9)
        assert_close(moments.running_var[s], 0.9 + 0.1 * own.var(0), 1e-9)
    assert_close(out[DOMAIN == 1], torch.zeros(1, 5), 1e-9)  # one row is its own mean
    assert_close(moments.running_mean[3], torch.zeros(5))
    assert_close(moments.running_var[3], torch.ones(5))
    assert (out - F.batch_norm(x, None, None, training=True)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_equal_in_a_domain_is_zero_and_gets_no_gradient(dtype):
    moments = DomainMoments(2, 3).to(dtype)
    flat = torch.tensor([0.0371, -7.3, 1e3])[DOMAIN]
    x = torch.stack([flat, torch.randn(7)], 1).to(dtype).requires_grad_()
    out = moments(x, DOMAIN)
    assert not out[:, 0].any()
    out.sum(0).square().sum().backward()
    assert not x.grad[:, 0].any()
    assert out[DOMAIN == 0, 1].any()


def test_moments_of_copies_are_those_of_each_copy():
    together, x = DomainMoments(5, 3, copies=2).double(), rows(2)
    out = together(x, DOMAIN)
    for m in range(2):
        alone = DomainMoments(5, 3).double()
        assert_close(out[m], alone(x[m], DOMAIN), 1e-9)
        assert_close(together.running_var[:, m], alone.running_var, 1e-9)


def test_moments_of_a_mixed_batch_have_the_gradient_of_one_batch_per_domain():
    moments, x = DomainMoments(5, 3).double(), rows()
    (moments(x, DOMAIN) * torch.arange(5)).square().sum().backward()
    alone = x.detach().clone().requires_grad_()
    for s in (0, 2):
        part = F.batch_norm(alone[s == DOMAIN], None, None, training=True)
        (part * torch.arange(5)).square().sum().backward()
    assert_close(x.grad, alone.grad, 1e-9)


def test_running_moments_stand_in_at_evaluation():
    moments = DomainMoments(2, 2).double().eval()
    moments.running_mean.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    moments.running_var.copy_(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    x = torch.tensor([[3.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    assert_close(moments(x, torch.tensor([0, 1])), [[1.0, 3.0], [3.0, 5.0]], 1e-4)


def test_a_split_gives_every_domain_the_first_head():
    towers = drawn(DomainTowers(5, MLPSpec((6,), norm="batch"), 2, 3))
    h = torch.randn(len(DOMAIN), 2, 5, dtype=torch.float64)
    towers.take_first()
    all_first = towers(h, of(DOMAIN * 0))
    assert_close(towers(h, of(DOMAIN)), all_first)
    towers(h, of(DOMAIN)).sum().backward()
    assert not any(parameter.grad[1:].any() for parameter in towers.parameters())
    towers.split()
    assert towers.of_domain.heads.tolist() == [0, 1, 2]
    for s in range(3):
        assert torch.equal(towers.eval()(h, of(DOMAIN * 0 + s)), towers(h, of(DOMAIN * 0)))
    for name, tensor in towers.state_dict().items():
        if not name.endswith("heads"):
            assert torch.equal(tensor, tensor[:1].expand_as(tensor)), name


def test_logits_are_float32_under_autocast():
    towers = DomainTowers(5, MLPSpec((6,), norm="batch"), 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = towers(torch.randn(len(DOMAIN), 2, 5), of(DOMAIN))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()


def test_a_domain_mlp_without_layers_is_the_identity():
    x = rows()
    assert DomainMLP(5, MLPSpec(), 3)(x, DOMAIN) is x
    assert MLP(5, ()).out_dim == DomainMLP(5, MLPSpec(), 3).out_dim
