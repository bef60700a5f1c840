import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.models.interactions import (
    BiInteraction,
    CrossV1,
    CrossV1Spec,
    CrossV2,
    CrossV2Spec,
    DNNSpec,
    Flat,
    FlatSpec,
    FMSpec,
)
from prismrec.models.layers import MLPSpec
from tests.unit.models.vectors import E1, X2, assert_close, copy_of, drawn

SPECS = [
    FMSpec(),
    FlatSpec(),
    DNNSpec(MLPSpec((7, 5), 0.0, "layer")),
    CrossV1Spec(3),
    CrossV2Spec(3),
    CrossV2Spec(2, rank=4),
]


def fm(X: torch.Tensor) -> torch.Tensor:
    return BiInteraction(X.shape[-1])(X).sum(-1)


def cross_v1(weight: torch.Tensor) -> CrossV1:
    module = CrossV1(4, 3, len(weight)).double()
    module.load_state_dict({"weight": weight, "bias": torch.zeros_like(weight)})
    return module


def cross_v2(num_fields: int, dim: int, W: torch.Tensor, b: torch.Tensor) -> CrossV2:
    module = CrossV2(num_fields, dim, len(W)).double()
    with torch.no_grad():
        for layer, weight, bias in zip(module.layers, W, b, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return module


def test_fm_vectors():
    assert_close(BiInteraction(2)(E1), [[5, -1]])
    assert_close(fm(E1), [4])
    assert_close(BiInteraction(3)(X2), [[-0.13, -0.13, -0.04], [-0.13, -0.04, 0.14]])
    assert_close(fm(X2), [-0.30, -0.03])


def test_fm_gradient_is_the_sum_of_the_other_fields():
    X = E1.clone().requires_grad_()
    fm(X).sum().backward()
    assert_close(X.grad, [[[3.5, 0], [1.5, 3], [4, 1]]])


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.floats(-3, 3), st.integers(0, 99)
)
def test_fm_properties(batch, fields, dim, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(batch, fields, dim, dtype=torch.float64, generator=generator)
    Y = torch.randn(batch, fields, dim, dtype=torch.float64, generator=generator)
    pairs = [X[:, i] * X[:, j] for i in range(fields) for j in range(i + 1, fields)]
    assert_close(BiInteraction(dim)(X), sum(pairs, torch.zeros_like(X[:, 0])))
    assert_close(fm(X[:, torch.randperm(fields, generator=generator)]), fm(X))
    assert_close(fm(scale * X), scale**2 * fm(X), 1e-10)
    assert_close(fm(torch.cat([X, torch.zeros_like(X[:, :1])], 1)), fm(X))
    assert_close(fm(torch.cat([X, Y], -1)), fm(X) + fm(Y))


def test_fm_sums_bfloat16_in_float32():
    X = torch.tensor([[[256.0], [1.0], [1.0]]], dtype=torch.bfloat16)
    assert fm(X).tolist() == [513.0]


def test_flat_is_field_major():
    assert Flat(3, 2)(E1).tolist() == [[1, 2, 3, -1, 0.5, 1]]


def test_cross_v1_scales_the_input():
    w = drawn((2, 12), 3, 2)
    alpha = torch.tensor([0.9352, 1.7670], dtype=torch.float64)
    assert_close(cross_v1(w)(X2), alpha[:, None] * X2.flatten(1), 1e-4)
    x = X2.flatten(1)
    assert_close(cross_v1(w)(X2), (1 + x @ w.T).prod(1, keepdim=True) * x)


def test_cross_v1_bias_by_hand():
    module = CrossV1(1, 2, 1).double()
    weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
    module.load_state_dict({"weight": weight, "bias": bias})
    X = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)
    assert module(X).tolist() == [[3 * 5 + 0.5 + 3, 1 * 5 - 1 + 1]]


def test_cross_v2_vector_of_one_layer():
    W = 0.1 * torch.arange(36, dtype=torch.float64).reshape(1, 6, 6)
    b = torch.tensor([[0.5, 0, 0, 0, 0, -1.0]])
    assert_close(cross_v2(3, 2, W, b)(E1), [[2.7, 12.2, 30, -13.9, 8.9, 20.7]])


def test_cross_v2_vectors_of_two_layers():
    out = cross_v2(4, 3, drawn((2, 12, 12), 2, 1), drawn((2, 12), 5, 3))(X2)
    assert_close(out.sum(1), [-1.8028, 0.2449], 1e-4)
    assert_close(out[0, :4], [-0.70588, -0.07742, -0.01576, 0.16055], 1e-5)
    assert_close(out[1, -3:], [0.40848, -0.3806, -0.13757], 1e-5)


def test_cross_v2_gradient_of_one_layer():
    X = X2.clone().requires_grad_()
    out = cross_v2(4, 3, drawn((1, 12, 12), 2, 1), drawn((1, 12), 5, 3))(X)
    out.backward(drawn((2, 12), 3, 7))
    assert_close(X.grad.flatten(1)[0, :3], [0.279, 0.838, -0.122], 1e-9)


def test_cross_v2_degenerates():
    zero = torch.zeros(2, 12, 12), torch.zeros(2, 12)
    assert torch.equal(cross_v2(4, 3, *zero)(X2), X2.flatten(1))
    w = drawn((2, 12), 3, 2)
    tied = w[:, None].expand(2, 12, 12)
    assert_close(cross_v2(4, 3, tied, torch.zeros(2, 12))(X2), cross_v1(w)(X2))


def test_cross_v2_low_rank_equals_its_full_matrix():
    low = CrossV2(4, 3, 2, rank=5).double()
    W = torch.stack([layer[1].weight @ layer[0].weight for layer in low.layers])
    b = drawn((2, 12), 5, 3)
    with torch.no_grad():
        for layer, bias in zip(low.layers, b, strict=True):
            layer[1].bias.copy_(bias)
    assert_close(low(X2), cross_v2(4, 3, W, b)(X2))


def test_cross_v2_on_two_sets_is_one_wide_network_with_blocks():
    torch.manual_seed(1)
    Y = drawn((2, 4, 3), 5, 4)
    blocks = [drawn((1, 12, 12), 2, 1), drawn((1, 12, 12), 7, 4)]
    b = drawn((2, 1, 12), 5, 3)
    apart = [cross_v2(4, 3, blocks[s], b[s])(x) for s, x in enumerate((X2, Y))]
    W = torch.block_diag(blocks[0][0], blocks[1][0])[None]
    wide = cross_v2(8, 3, W, b.reshape(1, 24))(torch.cat([X2, Y], 1))
    assert_close(wide, torch.cat(apart, 1))


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_stacked_equals_looped(spec):
    torch.manual_seed(1)
    stacked = spec.build(4, 3, 3).double()
    singles = [copy_of(stacked, spec.build(4, 3, None).double(), m) for m in range(3)]
    X = torch.randn(6, 3, 4, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()
    looped_X = X.detach().clone().requires_grad_()
    out = stacked(X)
    looped = torch.stack([single(looped_X[m]) for m, single in enumerate(singles)])
    assert out.shape == (3, 6, stacked.out_dim)
    assert_close(out, looped)
    cotangent = torch.randn_like(out)
    out.backward(cotangent)
    looped.backward(cotangent)
    assert_close(X.grad, looped_X.grad)
    for name, parameter in stacked.named_parameters():
        for m, single in enumerate(singles):
            assert_close(parameter.grad[m], single.get_parameter(name).grad)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_copies_are_drawn_by_themselves(spec):
    torch.manual_seed(1)
    for name, parameter in spec.build(4, 3, 2).named_parameters():
        if "weight" in name and "norm" not in name:
            assert (parameter[0] - parameter[1]).abs().max() > 0.01


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_gradients_are_those_of_finite_differences(spec):
    torch.manual_seed(1)
    module = spec.build(3, 2, 2).double()
    X = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, X)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_one_row_keeps_its_batch_axis(spec):
    module = spec.build(3, 2, None).double()
    assert module(E1).shape == (1, module.out_dim)
