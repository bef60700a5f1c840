from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.models import products
from prismrec.models.interactions.cross import _Cross
from prismrec.models.products import affine


@pytest.fixture(autouse=True)
def _on_another_makers_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_IS_INTEL", False)


def test_processors_of_intel_take_the_way_of_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "intel").write_text("vendor_id\t: GenuineIntel\n")
    (tmp_path / "other").write_text("vendor_id\t: AuthenticAMD\n")
    assert products.is_intel(tmp_path / "intel")
    assert not products.is_intel(tmp_path / "other")
    assert not products.is_intel(tmp_path / "missing")
    x, weight, _ = _inputs(None)
    assert products._takes_onednn(x, weight)
    monkeypatch.setattr(products, "_IS_INTEL", True)
    assert not products._takes_onednn(x, weight)


def _gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return [result.detach(), *torch.autograd.grad(result, inputs, torch.randn_like(result))]


def _inputs(copies: int | None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    lead = () if copies is None else (copies,)
    shapes = [(*lead, 512, 96), (*lead, 128, 96), (*lead, 128)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_the_kernel_computes_a_known_affine_map() -> None:
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]])
    result = products._Affine.apply(x, weight, torch.tensor([0.5, 0.0, 1.0]))
    assert result.tolist() == [[11.5, 17.0, -1.0]]


@pytest.mark.parametrize("copies", [None, 1, 3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_values_and_gradients_are_those_of_double_precision(
    copies: int | None, has_bias: bool
) -> None:
    inputs = _inputs(copies)
    if not has_bias:
        inputs.pop()
    assert products._takes_onednn(*inputs[:2])
    ours = _gradients(affine(*inputs, *[None] * (not has_bias)), inputs)
    exact_inputs = [each.detach().double().requires_grad_() for each in inputs]
    x, weight, *bias = exact_inputs
    exact = x @ weight.mT
    if bias:
        exact = exact + bias[0].unsqueeze(-2)
    torch.manual_seed(1)
    seed = torch.randn(ours[0].shape).double()
    expected = [exact, *torch.autograd.grad(exact, exact_inputs, seed)]
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own.double(), other.detach(), rtol=1e-5, atol=2e-4)


def test_a_transposed_stack_gives_the_same() -> None:
    x, weight, bias = _inputs(3)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous()
    for own, other in zip(
        _gradients(affine(strided, weight, bias), [strided, weight, bias]),
        _gradients(affine(x, weight, bias), [x, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-4)


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    x, weight, bias = _inputs(None)
    affine(x.detach(), weight, bias).sum().backward()
    assert weight.grad is not None
    assert x.grad is None


def test_small_double_and_autocast_products_are_pytorchs_own() -> None:
    x, weight, bias = _inputs(None)
    assert not products._takes_onednn(x[:4], weight)
    assert not products._takes_onednn(x.double(), weight.double())
    assert torch.equal(affine(x[:4], weight, bias), F.linear(x[:4], weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert not products._takes_onednn(x, weight)
        assert affine(x, weight, bias).dtype == torch.bfloat16


def test_gradients_of_a_cross_layer() -> None:
    torch.manual_seed(0)
    three = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(_Cross.apply, three)


def test_a_cross_layer_keeps_the_type_of_what_autocast_made() -> None:
    x0, u, x = (torch.ones(2, 2, requires_grad=True) for _ in range(3))
    narrow = u.detach().bfloat16().requires_grad_()
    crossed = _Cross.apply(x0 * 3, narrow, x)
    crossed.sum().backward()
    assert crossed.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    assert narrow.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_vectors_of_one_set_among_several_cost_what_vectors_alone_cost() -> None:
    _, weight, bias = _inputs(None)
    stack = torch.randn(512, 2, 96)

    def seconds(x: Tensor) -> float:
        taken = []
        for _ in range(5):
            inputs = [x.detach().requires_grad_(), weight, bias]
            began = time.perf_counter()
            _gradients(affine(*inputs), inputs)
            taken.append(time.perf_counter() - began)
        return min(taken)

    assert seconds(stack[:, 1]) < 20 * seconds(stack[:, 1].contiguous())
