"""STAR: every domain starts as the shared network and is trained by its own rows."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models import Inputs
from prismrec.models.heads.star import PartitionedNorm, Star, StarLinear, StarSpec
from prismrec.models.layers import MLPSpec
from tests.unit.models.vectors import assert_close, covering_all

FIELDS = dataclasses.replace(covering_all(3, 1, (4,), 2), num_domains=3)
DOMAIN = torch.tensor([2, 0, 1, 0, 2, 2, 0])
SPEC = StarSpec(MLPSpec((6, 5)))


def given(domain: Tensor = DOMAIN) -> Inputs:
    torch.manual_seed(1)
    sets = [torch.randn(len(domain), 3, 4, dtype=torch.float64, requires_grad=True)]
    return Inputs(sets, None, torch.randn(len(domain), 1, dtype=torch.float64), domain)


def built(**changes) -> Star:
    torch.manual_seed(0)
    return Star(FIELDS, dataclasses.replace(SPEC, **changes)).double()


def test_a_layer_is_its_formula():
    layer = StarLinear(2, 2, 2).double()
    with torch.no_grad():
        layer.shared.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T)
        layer.shared.bias.copy_(torch.tensor([0.1, 0.2]))
        layer.own.weight[1].copy_(torch.tensor([[1.0, 0.5], [2.0, 1.0]]).T)
        layer.own.bias[1].copy_(torch.tensor([0.0, -0.1]))
    x = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    both = layer(x, torch.tensor([1, 0]))
    assert_close(both, [[-4.9, -2.9], [-1.9, -1.8]], 1e-7)


def test_a_norm_is_its_formula():
    norm = PartitionedNorm(2, 3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(7, 2, dtype=torch.float64)
    out = norm(x, DOMAIN)
    for s in (0, 2):
        own = x[s == DOMAIN]
        normed = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()
        scale = norm.shared.weight[0] * norm.own.weight[s]
        shift = norm.shared.bias[0] + norm.own.bias[s]
        assert_close(out[s == DOMAIN], normed * scale + shift)


@pytest.mark.parametrize("norm", ["partitioned", "layer", "none"])
def test_every_domain_starts_as_the_shared_network(norm):
    model, inputs = built(norm=norm).eval(), given()
    nn.init.zeros_(model.auxiliary_head.weight)
    h = model.flat(inputs)
    if norm == "layer":
        h = F.layer_norm(h, h.shape[-1:])
    if norm == "partitioned":
        h = F.batch_norm(h, torch.zeros(16).double(), torch.ones(16).double())
    for layer in model.layers:
        h = F.relu(layer.shared(h))
    assert_close(model(inputs)[0], model.head.shared(h), 1e-9)


def test_in_training_a_domain_is_normalised_by_itself():
    mixed, alone = built(), built()
    logits = mixed(given())[0]
    for s in range(3):
        own = DOMAIN == s
        whole = given()
        part = Inputs([whole.sets[0][own]], None, whole.dense[own], DOMAIN[own])
        assert_close(alone(part)[0], logits[own], 1e-9)
    for name, buffer in mixed.named_buffers():
        assert_close(buffer, dict(alone.named_buffers())[name], 1e-9)


def test_the_auxiliary_network_adds_its_logit():
    model, inputs = built().eval(), given()
    beside = model.auxiliary_head(
        F.relu(model.auxiliary[0](torch.cat([model.vectors.weight[DOMAIN], model.flat(inputs)], 1)))
    )
    whole = model(inputs)[0]
    with torch.no_grad():
        model.auxiliary_head.weight.zero_()
    assert_close(whole - model(inputs)[0], beside - model.auxiliary_head.bias, 1e-9)
    assert beside.abs().max() > 1e-3
    alone = built(reads_features=False)
    assert alone.auxiliary[0].weight.shape[1] == SPEC.domain_dim


@pytest.mark.parametrize("norm", ["partitioned", "layer"])
def test_rows_of_a_domain_train_its_factors_and_the_shared_network(norm):
    model, inputs = built(norm=norm), given()
    model(inputs)[0][DOMAIN == 0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if ".own." in name or name == "vectors.weight":
            assert parameter.grad[0].any(), name
            assert not parameter.grad[1:].any(), name
        else:
            assert parameter.grad.any(), name
    assert not inputs.sets[0].grad[DOMAIN != 0].any()
    assert inputs.sets[0].grad[DOMAIN == 0].any()
