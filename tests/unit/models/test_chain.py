"""ESMM: products of probabilities as logits, and what they train."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prismrec.models import Fields, Inputs
from prismrec.models.heads.chain import ChainedTasks, chained
from prismrec.models.layers import MLPSpec
from prismrec.models.objectives import binary_cross_entropy
from tests.unit.models.vectors import assert_close, covering_all


def z_of(*probabilities: float) -> torch.Tensor:
    odds = [math.log(p / (1 - p)) for p in probabilities]
    return torch.tensor([odds], dtype=torch.float64, requires_grad=True)


def test_the_product_its_loss_and_its_gradients():
    z = z_of(0.1, 0.3)
    logits = chained(z)
    assert_close(torch.sigmoid(logits), [[0.1, 0.03]])
    loss = binary_cross_entropy(logits[:, 1], torch.zeros(1, dtype=torch.float64)).sum()
    loss.backward()
    assert_close(loss, 0.0304592075, 1e-10)
    assert_close(z.grad, [[0.0278350515, 0.0216494845]], 1e-10)


def test_the_loss_of_a_conversion_is_that_of_both_steps():
    z = z_of(0.1, 0.3)
    loss = binary_cross_entropy(chained(z)[:, 1], torch.ones(1, dtype=torch.float64))
    assert_close(loss, [-math.log(0.03)])
    loss.sum().backward()
    assert_close(z.grad, [[-0.9, -0.7]])


def test_a_longer_chain_multiplies_on():
    assert_close(torch.sigmoid(chained(z_of(0.5, 0.4, 0.25, 0.9))), [[0.5, 0.2, 0.05, 0.045]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("a", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("b", [-50.0, 0.0, 50.0])
def test_extreme_logits_stay_finite_and_right(a, b, label, dtype):
    z = torch.tensor([[a, b]], dtype=dtype, requires_grad=True)
    logits = chained(z)
    loss = binary_cross_entropy(logits, torch.full((1, 2), label, dtype=dtype))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert z.grad.isfinite().all()
    wide = torch.tensor([[a, b]], dtype=torch.float64)
    log_p = F.logsigmoid(wide).sum()
    expected = -(log_p if label else torch.log(-torch.expm1(log_p)))
    torch.testing.assert_close(loss[0, 1].double(), expected, rtol=1e-5, atol=1e-20)


@given(st.lists(st.floats(-60, 60), min_size=2, max_size=5))
def test_a_step_never_makes_a_row_more_likely(steps):
    logits = chained(torch.tensor([steps], dtype=torch.float64))
    assert (logits[:, 1:] <= logits[:, :-1]).all()
    assert (
        (logits <= torch.tensor(steps)) | torch.isclose(logits, torch.tensor(steps).double())
    ).all()


def built(**changes) -> tuple[ChainedTasks, Inputs]:
    torch.manual_seed(0)
    fields: Fields = covering_all(3, 2, (4, 8), 2)
    model = ChainedTasks(fields, MLPSpec((6,), norm="layer")).double()
    sets = [torch.randn(5, 3, d, dtype=torch.float64, requires_grad=True) for d in (4, 8)]
    return model, Inputs(sets, None, torch.randn(5, 2, dtype=torch.float64))


def test_the_conversion_loss_trains_both_towers_and_the_click_loss_one():
    model, inputs = built()
    for task, trained in ((0, [True, False]), (1, [True, True])):
        model.zero_grad()
        model(inputs)[0][:, task].sum().backward()
        for name, parameter in model.towers.named_parameters():
            assert [bool(each.any()) for each in parameter.grad] == trained, (name, task)


def test_the_rows_that_stopped_earlier_train_the_later_step():
    model, inputs = built()
    logits, auxiliary = model(inputs)
    assert auxiliary == {}
    no_conversion = torch.zeros(5, dtype=torch.float64)
    binary_cross_entropy(logits[:, 1], no_conversion).sum().backward()
    assert all(parameter.grad[1].any() for parameter in model.towers.parameters())
    assert all(each.grad.abs().sum() > 0 for each in inputs.sets)
    step = torch.sigmoid(logits[:, 1]) / torch.sigmoid(logits[:, 0])
    assert ((step > 0) & (step < 1)).all()
