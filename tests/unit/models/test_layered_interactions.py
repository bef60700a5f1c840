"""The family of PFL against vectors written out by hand, and each as a limit of another."""

from __future__ import annotations

from math import comb

import pytest
import torch
from torch import Tensor

from prismrec.models.interactions import (
    BiInteraction,
    CrossV2,
    FieldMatrixed,
    FieldVectorised,
    FieldWeighted,
    Layered,
    LayeredSpec,
)
from tests.unit.models.vectors import X2, assert_close, drawn

MATRICES = drawn((2, 4, 4, 3, 3), 3, 7)


def _layered(
    function: str, aggregator: str, weights: Tensor | None, shares: Tensor | None = None, **more
) -> Layered:
    num_layers = more.pop("num_layers", 3)
    spec = LayeredSpec(function, aggregator, num_layers, **{"reduce": "sum"} | more)
    module = Layered(spec, 4, 3).double()
    with torch.no_grad():
        for parameter, value in zip(
            module.weights, weights if len(module.weights) else [], strict=True
        ):
            parameter.copy_(value)
        for parameter, value in zip(module.shares, [] if shares is None else shares, strict=True):
            parameter.copy_(value)
    return module


SHARES = torch.tensor([1, 0.5, -2], dtype=torch.float64)

VECTORS = {
    "PFL": (
        ("projected", "layer", MATRICES, SHARES),
        [[0.77476, -0.15348, -0.44592], [-0.5041, -0.50624, 0.99296]],
    ),
    "PFD": (
        ("projected", "direct", MATRICES),
        [[0.74012, -0.42076, -0.52704], [-0.1867, -0.41688, 0.73977]],
    ),
    "PFT": (
        ("projected", "term", MATRICES, drawn((3, 4), 3, 4)),
        [[0.290548, -0.39446, 0.04832], [-0.505564, 0.009168, 0.046858]],
    ),
    "PFE": (
        ("projected", "element", MATRICES, drawn((3, 4, 3), 5, 6)),
        [[0.11798, -0.224532, 0.008], [0.080537, -0.019104, 0.155793]],
    ),
    "WFL": (
        ("weighted", "layer", drawn((2, 4, 4), 3, 7), SHARES),
        [[0.46722, -0.59274, -0.42128], [-0.59274, -0.42128, 0.9187]],
    ),
    "DFL": (
        ("diagonal", "layer", drawn((2, 4, 4, 3), 3, 7), SHARES),
        [[0.52494, -0.70376, -0.4188], [-0.39176, -0.40144, 0.71304]],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    arguments, expected = VECTORS[name]
    assert_close(_layered(*arguments)(X2), expected, 1e-10)


def test_the_layout_by_field() -> None:
    module = _layered("projected", "layer", MATRICES, SHARES, reduce="field")
    Z = module(X2).view(2, 4, 3)
    assert_close(Z[0, 0], [-0.32272, -0.11104, 0.21152], 1e-10)
    assert_close(Z.sum(1), VECTORS["PFL"][1], 1e-10)


def test_the_functions_nest() -> None:
    r = drawn((2, 4, 4), 3, 7)
    eye = torch.eye(3, dtype=torch.float64)
    weighted = _layered("weighted", "layer", r, SHARES)(X2)
    diagonal = _layered("diagonal", "layer", r[..., None].expand(2, 4, 4, 3), SHARES)(X2)
    projected = _layered("projected", "layer", r[..., None, None] * eye, SHARES)(X2)
    assert_close(diagonal, weighted)
    assert_close(projected, weighted)
    naive = _layered("naive", "layer", None, SHARES)(X2)
    assert_close(_layered("weighted", "layer", torch.ones_like(r), SHARES)(X2), naive)


def test_the_aggregators_nest() -> None:
    by_layer = _layered("projected", "layer", MATRICES, SHARES)(X2)
    by_term = _layered("projected", "term", MATRICES, SHARES[:, None].expand(3, 4))(X2)
    by_element = _layered("projected", "element", MATRICES, SHARES[:, None, None].expand(3, 4, 3))
    assert_close(by_term, by_layer)
    assert_close(by_element(X2), by_layer)
    direct = _layered("projected", "direct", MATRICES)(X2)
    assert_close(_layered("projected", "layer", MATRICES, torch.ones(3))(X2), direct)


def test_two_layers_over_pairs_are_the_pairwise_models() -> None:
    """The second layer alone: all of two layers less the first, which is the sum of the fields."""
    first = X2.sum(1)
    r, d, M = drawn((6,), 2, 3), drawn((6, 3), 4, 0), drawn((6, 3, 3), 7, 4)
    for function, module, weight in (
        ("weighted", FieldWeighted(4, 3).double(), r),
        ("diagonal", FieldVectorised(4, 3).double(), d),
        ("projected", FieldMatrixed(4, 3).double(), M),
    ):
        with torch.no_grad():
            module.weight.copy_(weight)
        full = weight.new_zeros(4, 4, *weight.shape[1:])
        full[tuple(torch.triu_indices(4, 4, 1))] = weight
        layered = _layered(function, "direct", full[None], num_layers=2, pairs="upper")
        assert_close(layered(X2) - first, module(X2))
    naive = _layered("naive", "direct", None, num_layers=2, pairs="upper")
    assert_close(naive(X2) - first, BiInteraction(3)(X2))
    others = _layered("naive", "direct", None, num_layers=2, pairs="offdiag")
    assert_close(others(X2) - first, 2 * BiInteraction(3)(X2))


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
def test_naive_layers_over_all_pairs_are_powers_of_the_sum(num_layers: int) -> None:
    total = X2.sum(1)
    expected = sum(total**power for power in range(1, num_layers + 1))
    assert_close(_layered("naive", "direct", None, num_layers=num_layers)(X2), expected)


@pytest.mark.parametrize("function", ["naive", "weighted", "diagonal", "projected"])
def test_a_layer_more_is_a_power_more(function: str) -> None:
    weights = {"weighted": drawn((2, 4, 4), 3, 7), "diagonal": drawn((2, 4, 4, 3), 3, 7)}
    chosen = None if function == "naive" else weights.get(function, MATRICES)
    only = [
        _layered(function, "layer", chosen, torch.eye(3, dtype=torch.float64)[layer])
        for layer in range(3)
    ]
    for power, module in enumerate(only, start=1):
        assert_close(module(3 * X2), 3**power * module(X2), 1e-10)


def test_the_gradient_of_a_second_layer_written_out() -> None:
    X = X2.clone().requires_grad_()
    weights = drawn((4, 4, 3, 3), 3, 7)
    second = torch.tensor([0, 1], dtype=torch.float64)
    layered = _layered("projected", "layer", weights[None], second, num_layers=2)
    layered(X).sum().backward()
    assert X.grad is not None
    assert_close(X.grad[0, 0], [-0.60, 0.02, 0.64], 1e-9)


def test_three_layers_are_of_degree_three() -> None:
    """Along a multiple of the fields the fourth difference is nothing, the third is not."""
    module = _layered("projected", "direct", MATRICES)
    S = [module(c * X2) for c in range(5)]
    third = S[3] - 3 * S[2] + 3 * S[1] - S[0]
    assert third.abs().max().item() == pytest.approx(0.7366, abs=1e-4)
    assert_close(S[4] - 4 * S[3] + 6 * S[2] - 4 * S[1] + S[0], torch.zeros(2, 3), 1e-13)


def test_fields_and_their_weights_can_be_renumbered_together() -> None:
    order = [2, 0, 3, 1]
    there = MATRICES[:, order][:, :, order]
    found = _layered("projected", "layer", there, SHARES)(X2[:, order])
    assert_close(found, VECTORS["PFL"][1], 1e-10)


def test_one_cross_layer_without_bias_is_pfd_of_two() -> None:
    cross = CrossV2(4, 3, 1).double()
    with torch.no_grad():
        cross.layers[0].bias.zero_()
    # the cross layer's rows are (field n, column l) and its columns (field i, column k)
    weight = cross.layers[0].weight.detach().view(4, 3, 4, 3).permute(2, 0, 3, 1)
    layered = _layered("projected", "direct", weight[None], num_layers=2, reduce="field")
    assert_close(layered(X2), cross(X2))


def test_tied_cross_layers_are_pfl_with_binomial_shares() -> None:
    cross = CrossV2(4, 3, 3).double()
    with torch.no_grad():
        for layer in cross.layers:
            layer.weight.copy_(cross.layers[0].weight)
            layer.bias.zero_()
    weight = cross.layers[0].weight.detach().view(4, 3, 4, 3).permute(2, 0, 3, 1)
    shares = torch.tensor([comb(3, order) for order in range(4)], dtype=torch.float64)
    layered = _layered(
        "projected", "layer", weight.expand(3, 4, 4, 3, 3), shares, num_layers=4, reduce="field"
    )
    assert_close(layered(X2), cross(X2), 1e-10)
