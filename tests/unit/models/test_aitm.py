"""AITM: attention to the task before, and the calibrator."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prismrec.models import Inputs
from prismrec.models.heads.aitm import Aitm, AitmOptions, Calibrator, Transfer, calibrator_loss
from prismrec.models.layers import MLPSpec
from tests.unit.models.vectors import assert_close, covering_all

FIELDS = covering_all(3, 1, (4,), 3)


def given(rows: int = 6) -> Inputs:
    torch.manual_seed(1)
    sets = [torch.randn(rows, 3, 4, dtype=torch.float64, requires_grad=True)]
    return Inputs(sets, None, torch.randn(rows, 1, dtype=torch.float64))


def built(**options) -> Aitm:
    torch.manual_seed(0)
    bottom, tower = MLPSpec((5, 4), norm="layer"), MLPSpec((3,), norm="none")
    return Aitm(FIELDS, bottom, tower, AitmOptions(**options)).double()


def test_identity_maps_attend_by_length():
    transfer = Transfer(2).double()
    for layer in (transfer.value, transfer.query, transfer.key):
        nn.init.eye_(layer.weight)
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    a = torch.softmax(torch.tensor([1.0, 4.0], dtype=torch.float64) / math.sqrt(2), 0)
    assert_close(a, [0.1070418, 0.8929582], 1e-7)
    assert_close(transfer(p, q), [[0.1070418, 1.7859164]], 1e-7)


def test_the_model_is_its_formula():
    model, inputs = built().eval(), given()
    x = model.flat(inputs)
    own = [each for each in model.bottoms(x)]  # checked by the tests of MLPs
    z = [own[0]]
    for t in (1, 2):
        told = F.relu(model.tell[t - 1](z[-1]))
        h = model.transfers[t - 1]
        pair = torch.stack([told, own[t]])
        scores = (pair @ h.query.weight.T * (pair @ h.key.weight.T)).sum(-1) / 2
        a = torch.softmax(scores, 0)
        z.append((a.unsqueeze(-1) * (pair @ h.value.weight.T)).sum(0))
    expected = model.towers(torch.stack(z, 1), inputs) + model.bias.bias
    logits, auxiliary = model(inputs)
    assert_close(logits, expected)
    assert auxiliary == {}


def test_a_task_moves_nothing_of_later_ones():
    model, inputs = built(), given()
    logits, _ = model(inputs)
    logits[:, 0].sum().backward()
    for module in (model.tell, model.transfers):
        assert not any(p.grad is not None and p.grad.any() for p in module.parameters())
    for parameter in model.bottoms.parameters():
        assert parameter.grad[0].any()
        assert not parameter.grad[1:].any()
    model.zero_grad()
    model(inputs)[0][:, 2].sum().backward()
    assert all(p.grad.any() for p in model.tell.parameters())
    assert all(p.grad[0].any() for p in model.bottoms.parameters())


def test_maps_may_be_shared_by_the_tasks():
    assert len(built().transfers) == 2
    shared = built(transfer="shared")
    assert len(shared.transfers) == 1
    shared(given())[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in shared.transfers.parameters())


def test_the_calibrator_counts_probabilities_that_grow():
    p = torch.tensor([[0.5, 0.25, 0.75], [0.25, 0.5, 0.5]], dtype=torch.float64)
    logits = torch.log(p / (1 - p))
    assert_close(calibrator_loss(logits, None, "sum"), 0.75)
    assert_close(calibrator_loss(logits, None, "mean"), 0.375)
    counted = torch.tensor([0.0, 1.0])
    assert_close(calibrator_loss(logits, counted, "sum"), 0.25)
    assert_close(calibrator_loss(logits, counted, "mean"), 0.25)
    assert calibrator_loss(logits, counted * 0, "mean") == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_calibrator_is_a_loss_of_training(reduction):
    model = built(calibrator=Calibrator(0.6, reduction))
    with torch.no_grad():
        model.bias.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    logits, auxiliary = model(given())
    expected = 0.6 * calibrator_loss(logits, None, reduction)
    assert_close(auxiliary["calibrator"], expected)
    assert expected > 0
    assert built(calibrator=Calibrator(0.0))(given())[1] == {}


def test_bottoms_need_a_layer():
    with pytest.raises(ValueError, match="bottoms of AITM need a layer"):
        Aitm(FIELDS, MLPSpec(), MLPSpec(), AitmOptions())
