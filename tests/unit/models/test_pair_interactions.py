"""Pairwise interactions against vectors written out by hand, and each as a limit of another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prismrec.models.interactions import (
    CIN,
    BiInteraction,
    FFMSpec,
    FieldAware,
    FieldMatrixed,
    FieldVectorised,
    FieldWeighted,
    FmFMSpec,
    FvFMSpec,
    FwFMSpec,
    GroupedParts,
    GwPFMSpec,
    InnerProducts,
    InnerProductsSpec,
    Interaction,
    InteractionSpec,
    LayeredSpec,
    LowRankWeighted,
)
from prismrec.models.interactions.cin import CINSpec
from tests.unit.models.vectors import E1, X2, assert_close, copy_of, drawn

PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]


def _with(module: Interaction, weight: Tensor | list) -> Interaction:
    module = module.double()
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(weight, dtype=torch.float64))
    return module


def test_field_weights() -> None:
    assert _with(FieldWeighted(3, 2), [2, -1, 0.5])(E1).sum().item() == pytest.approx(-0.25)
    found = _with(FieldWeighted(4, 3), drawn((6,), 2, 3))(X2)
    assert_close(found, [[0.058, 0.166, -0.04], [0.166, -0.04, -0.01]])


def test_field_weights_of_low_rank() -> None:
    U, c = drawn((2, 4), 3, 4), torch.tensor([0.7, -1.2], dtype=torch.float64)
    module = LowRankWeighted(4, 3, 2).double()
    module.load_state_dict({"factors": U, "scales": c})
    assert_close(module(X2).sum(1), [0.09602, 0.06156], 1e-10)
    r = torch.einsum("r,ri,rj->ij", c, U, U)
    full = _with(FieldWeighted(4, 3), torch.stack([r[i, j] for i, j in PAIRS]))
    assert_close(module(X2), full(X2))
    near = LowRankWeighted(4, 3, 3).double()(X2) - BiInteraction(3)(X2)
    assert 0 < near.abs().max() < 1e-2
    assert_close(LowRankWeighted(4, 3, 1).double()(X2), BiInteraction(3)(X2))


def test_field_vectors() -> None:
    module = _with(FieldVectorised(3, 2), [[1, 0], [0, 1], [2, -1]])
    assert module(E1).sum().item() == pytest.approx(9)
    found = _with(FieldVectorised(4, 3), drawn((6, 3), 4, 0))(X2)
    assert_close(found, [[0.125, -0.093, -0.08], [-0.041, 0.024, 0.04]])


def test_field_matrices() -> None:
    M = [[[0, 1], [1, 0]], [[1, 1], [0, 1]], [[2, 0], [0, 3]]]
    assert _with(FieldMatrixed(3, 2), M)(E1).sum().item() == pytest.approx(8.5)
    found = _with(FieldMatrixed(4, 3), drawn((6, 3, 3), 7, 4))(X2)
    assert_close(found, [[0.044, 0.05, -0.234], [0.089, 0.12, -0.049]])


def test_gradients_written_out() -> None:
    """Of the sum: by every other field through the pair's weights; by V through its partners."""
    r, d, M = drawn((6,), 2, 3), drawn((6, 3), 4, 0), drawn((6, 3, 3), 7, 4)
    found = {}
    for weight in (r, d, M):
        X = X2.clone().requires_grad_()
        make = (FieldWeighted, FieldVectorised, FieldMatrixed)[weight.dim() - 1]
        module = _with(make(4, 3), weight)
        module(X).sum().backward()
        found[weight.dim()] = X.grad
        assert X.grad is not None
    full = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    for weight, matrices in (
        (1, r[:, None, None] * torch.eye(3)),
        (2, torch.diag_embed(d)),
        (3, M),
    ):
        for (i, j), matrix in zip(PAIRS, matrices, strict=True):
            full[i, j], full[j, i] = matrix, matrix.T
        assert_close(found[weight], torch.einsum("bjl,ijkl->bik", X2, full))
    assert_close(found[3][0, 0], [0.05, -0.27, -0.37])


def test_gradients_of_slots() -> None:
    V = drawn((2, 4, 2, 3), 3, 2).requires_grad_()
    r = torch.tensor([[1, 2, -1], [2, 0.5, 3], [-1, 3, 1.5]], dtype=torch.float64)
    parts, groups = (0, 0, 1, 1), (0, 1, 2, 2)
    _with(GroupedParts(parts, groups, 6), r)(V.flatten(2)).sum().backward()
    expected = torch.zeros_like(V)
    with torch.no_grad():
        for i in range(4):
            for j in range(4):
                if i != j:
                    expected[:, i, parts[j]] += r[groups[i], groups[j]] * V[:, j, parts[i]]
    assert V.grad is not None
    assert_close(V.grad, expected)

    W = drawn((2, 4, 4, 3), 5, 2).requires_grad_()
    FieldAware(4, 9)(_full_slots(W)).sum().backward()
    partner = W.detach().transpose(1, 2).clone()
    partner[:, range(4), range(4)] = 0
    assert W.grad is not None
    assert_close(W.grad, partner)


def test_the_hierarchy_of_pair_weights() -> None:
    r, d = drawn((6,), 2, 3), drawn((6, 3), 4, 0)
    eye = torch.eye(3, dtype=torch.float64)
    fm = BiInteraction(3)(X2)
    for module in (FieldWeighted(4, 3), FieldVectorised(4, 3)):
        assert_close(module.double()(X2), fm)
    assert_close(_with(FieldMatrixed(4, 3), eye.expand(6, 3, 3))(X2), fm)
    weighted = _with(FieldWeighted(4, 3), r)(X2)
    assert_close(_with(FieldVectorised(4, 3), r[:, None].expand(6, 3))(X2), weighted)
    assert_close(_with(FieldMatrixed(4, 3), r[:, None, None] * eye)(X2), weighted)
    vectorised = _with(FieldVectorised(4, 3), d)(X2)
    assert_close(_with(FieldMatrixed(4, 3), torch.diag_embed(d))(X2), vectorised)


def test_inner_products() -> None:
    assert_close(InnerProducts(3, 2)(E1), [[1, 2.5, 0.5]])
    expected = [[-0.17, -0.11, -0.16, 0.3, -0.07, -0.09], [0.18, 0.06, -0.17, 0.18, -0.15, -0.13]]
    assert_close(InnerProducts(4, 3)(X2), expected)
    assert_close(InnerProducts(4, 3)(X2).sum(1), BiInteraction(3)(X2).sum(1))


def test_inner_products_stand_behind_the_fields() -> None:
    found = InnerProducts(3, 2, with_fields=True)(E1)
    assert_close(found, [[1, 2, 3, -1, 0.5, 1, 1, 2.5, 0.5]])


def _full_slots(V: Tensor) -> Tensor:
    """(B, N, N, k) with a slot for each field to the N - 1 slots of the module, flattened."""
    N = V.shape[1]
    rows = [torch.cat([V[:, i, j] for j in range(N) if j != i], -1) for i in range(N)]
    return torch.stack(rows, 1)


def test_field_aware_vectors() -> None:
    V = drawn((2, 4, 4, 3), 5, 2)
    assert_close(FieldAware(4, 9)(_full_slots(V)).sum(1), [0.36, 1.03])
    tied = X2.unsqueeze(2).expand(2, 4, 4, 3)
    assert_close(FieldAware(4, 9)(_full_slots(tied)), BiInteraction(3)(X2))


def test_parts_and_groups() -> None:
    V = drawn((2, 4, 2, 3), 3, 2)
    r = [[1, 2, -1], [2, 0.5, 3], [-1, 3, 1.5]]
    module = _with(GroupedParts((0, 0, 1, 1), (0, 1, 2, 2), 6), r)
    assert_close(module(V.flatten(2)), [[-0.83, 0.295, 0.24], [0.24, -0.5, -0.385]])


def test_parts_and_groups_reach_ffm_fwfm_and_fm() -> None:
    V = drawn((2, 4, 4, 3), 5, 2)
    every = GroupedParts((0, 1, 2, 3), (0,) * 4, 12).double()
    assert_close(every(V.flatten(2)), FieldAware(4, 9)(_full_slots(V)))
    r = torch.zeros(4, 4, dtype=torch.float64)
    pairs = drawn((6,), 2, 3)
    for (i, j), value in zip(PAIRS, pairs, strict=True):
        r[i, j] = r[j, i] = value
    one_part = _with(GroupedParts((0,) * 4, (0, 1, 2, 3), 3), r)
    assert_close(one_part(X2), _with(FieldWeighted(4, 3), pairs)(X2))
    assert_close(GroupedParts((0,) * 4, (0,) * 4, 3).double()(X2), BiInteraction(3)(X2))
    swapped = [1, 0, 2, 3]
    module = _with(GroupedParts((0, 0, 1, 1), (0, 0, 1, 2), 6), drawn((3, 3), 4, 1))
    two = drawn((2, 4, 2, 3), 3, 2).flatten(2)
    assert_close(module(two[:, swapped]), module(two))


def test_only_the_symmetric_part_of_the_group_weights_counts() -> None:
    r = drawn((2, 2), 4, 1)
    two = drawn((2, 4, 2, 3), 3, 2).flatten(2)
    one = _with(GroupedParts((0, 0, 1, 1), (0, 1, 1, 0), 6), r)(two)
    assert_close(_with(GroupedParts((0, 0, 1, 1), (0, 1, 1, 0), 6), r.T)(two), one)


def test_compressed_interactions() -> None:
    C1, C2 = drawn((2, 4, 4), 3, 5), drawn((3, 2, 4), 4, 2)
    found = {}
    for activation in ("identity", "relu"):
        module = CIN(4, (2, 3), activation).double()
        with torch.no_grad():
            module.weights[0].copy_(C1.flatten(1))
            module.weights[1].copy_(C2.flatten(1))
        found[activation] = module(X2)
    first = [[0.094, 0.138], [0.186, 0.133]]
    second = [[-0.09458, -0.0212, -0.018], [-0.08584, -0.03647, -0.04221]]
    assert_close(found["identity"], torch.cat([torch.tensor(first), torch.tensor(second)], 1), 1e-6)
    relu = [[0.102, 0.249, 0, 0.01162, 0.01208], [0.194, 0.244, 0, 0, 0.00376]]
    assert_close(found["relu"], relu, 1e-10)


def test_a_compressed_layer_is_weighted_pooling_over_all_pairs() -> None:
    module = CIN(4, (2,)).double()
    C = module.weights[0].detach().view(2, 4, 4)
    expected = torch.einsum("hij,bik,bjk->bh", C, X2, X2)
    assert_close(module(X2), expected)


@pytest.mark.parametrize(
    ("spec", "dim"),
    [
        (FwFMSpec(), 6),
        (FwFMSpec(rank=2), 6),
        (FvFMSpec(), 6),
        (FmFMSpec(), 6),
        (FFMSpec(), 6),
        (GwPFMSpec((0, 1, 0, 1), (0, 0, 1, 1)), 6),
        (InnerProductsSpec(), 6),
        (InnerProductsSpec(with_fields=True), 6),
        (CINSpec((3, 2), "relu"), 6),
        (LayeredSpec("weighted", "term"), 6),
        (LayeredSpec("diagonal", "element", pairs="offdiag"), 6),
        (LayeredSpec("projected", "layer", pairs="upper", reduce="sum"), 6),
        (LayeredSpec("naive", "direct"), 6),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_copies_are_independent_modules(spec: InteractionSpec, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3, 5, 4, dim, dtype=torch.float64, generator=generator)
    stacked, single = spec.build(4, dim, 3).double(), spec.build(4, dim, None).double()
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    found = stacked(X)
    assert found.shape == (3, 5, single.out_dim)
    for m in range(3):
        assert_close(found[m], copy_of(stacked, single, m)(X[m]), 1e-11)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize(
    "spec",
    [
        FwFMSpec(),
        FwFMSpec(rank=2),
        FmFMSpec(),
        GwPFMSpec((0, 1, 0), (0, 0, 1)),
        CINSpec((3,)),
        LayeredSpec(),
    ],
)
def test_every_weight_has_a_gradient_whatever_the_batch(spec: InteractionSpec, rows: int) -> None:
    module = spec.build(3, 4, None)
    X = torch.randn(rows, 3, 4, requires_grad=True)
    module(X).sum().backward()
    assert all(each.grad is not None for each in module.parameters())
    assert X.grad is not None
    assert bool(X.grad.isfinite().all())


def test_widths_that_slots_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="into 3 equal slots.*width of 8.*multiple of 3"):
        FieldAware(4, 8)
    with pytest.raises(ValueError, match="gwpfm .* 2 equal slots"):
        GroupedParts((0, 1), (0, 0), 5)
    with pytest.raises(ValueError, match="each of 3 fields, got 2 parts and 3 groups"):
        GwPFMSpec((0, 1), (0, 0, 0)).build(3, 4, None)


@pytest.mark.parametrize(
    "spec",
    [
        FwFMSpec(),
        FwFMSpec(rank=2),
        FvFMSpec(),
        FmFMSpec(),
        FFMSpec(),
        GwPFMSpec((0, 1, 0), (0, 0, 1)),
        InnerProductsSpec(with_fields=True),
        CINSpec((3, 2)),
        LayeredSpec("weighted", "term", 3),
        LayeredSpec("diagonal", "element", 3, "offdiag"),
        LayeredSpec("projected", "layer", 3, "upper", "sum"),
    ],
    ids=lambda spec: type(spec).__name__,
)
@pytest.mark.parametrize("copies", [None, 2])
def test_gradients_are_those_of_finite_differences(
    spec: InteractionSpec, copies: int | None
) -> None:
    torch.manual_seed(0)
    module = spec.build(3, 2, copies).double()
    shape = (2, 3, 2) if copies is None else (copies, 2, 3, 2)
    X = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def of(X: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (X,))

    assert torch.autograd.gradcheck(of, (X, *module.parameters()))


def test_the_scale_of_an_fm() -> None:
    """Vectors of standard deviation s make a sum of P K products of deviation s^2."""
    generator = torch.Generator().manual_seed(0)
    X = 0.05 * torch.randn(4096, 39, 16, dtype=torch.float64, generator=generator)
    found = BiInteraction(16)(X).sum(1).std().item()
    assert found == pytest.approx((741 * 16) ** 0.5 * 0.05**2, rel=0.05)
    assert found == pytest.approx(0.272, rel=0.05)
