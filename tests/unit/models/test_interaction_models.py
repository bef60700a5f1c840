"""Models of one interaction: their formulas, their limits, and several sets of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.config import ConfigError, UserError
from prismrec.config.load import from_dict
from prismrec.config.models.base import Common
from prismrec.config.models.single import (
    DCN,
    DFL,
    FFM,
    FM,
    IPNN,
    PFD,
    PFL,
    WFL,
    DCNv2,
    FmFM,
    FvFM,
    FwFM,
    GwPFM,
    XDeepFM,
)
from prismrec.models import Inputs, build_model, needs_linear
from tests.unit.models.vectors import assert_close, covering_all, drawn

PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]
HIDDEN = (6, 5)


def built(section: Common, dim: int = 3, num_sets: int = 1) -> nn.Module:
    torch.manual_seed(1)
    model = build_model(section, covering_all(4, 0, (dim,) * num_sets, 1)).double()
    nn.init.constant_(model.first_order.bias, 0.25)
    return model


def inputs(section: Common, sets: list[Tensor]) -> Inputs:
    linear = drawn((2, 4, 1), 7, 3) if needs_linear(section) else None
    return Inputs(sets, linear, torch.zeros(2, 0, dtype=torch.float64))


def logits(model: nn.Module, section: Common, *sets: Tensor) -> Tensor:
    return model(inputs(section, list(sets)))[0]


def interaction(model: nn.Module, branch: int = 0) -> nn.Module:
    return model.branches[branch].experts.groups[0].interactions[0]


def with_weight(section: Common, weight: Tensor) -> nn.Module:
    model = built(section)
    with torch.no_grad():
        interaction(model).weight.copy_(weight)
    return model


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    for linear, norm in zip(module.linears, module.norms, strict=True):
        x = F.linear(x, linear.weight, linear.bias)
        x = F.relu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias))
    return x


X = drawn((2, 4, 3), 3, 1)
FIRST_ORDER = 0.25 + drawn((2, 4, 1), 7, 3).sum(1)


def test_pairwise_models_add_first_order_and_products() -> None:
    r, d, M = drawn((6,), 2, 3), drawn((6, 3), 4, 0), drawn((6, 3, 3), 7, 4)
    fwfm, fvfm, fmfm = FwFM(name="fwfm"), FvFM(name="fvfm"), FmFM(name="fmfm")
    for section, weight, products in (
        (fwfm, r, [[0.184], [0.116]]),
        (fvfm, d, [[-0.048], [0.023]]),
        (fmfm, M, [[-0.14], [0.16]]),
    ):
        expected = FIRST_ORDER + torch.tensor(products)
        assert_close(logits(with_weight(section, weight), section, X), expected, 1e-7)


def test_the_hierarchy_of_models() -> None:
    fm, fmfm = FM(name="fm"), FmFM(name="fmfm")
    fwfm, fvfm = FwFM(name="fwfm"), FvFM(name="fvfm")
    eye = torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    r, d = drawn((6,), 2, 3), drawn((6, 3), 4, 0)
    assert_close(logits(with_weight(fmfm, eye), fmfm, X), logits(built(fm), fm, X))
    weighted = logits(with_weight(fwfm, r), fwfm, X)
    assert_close(logits(with_weight(fmfm, r[:, None, None] * eye), fmfm, X), weighted)
    vectorised = logits(with_weight(fvfm, d), fvfm, X)
    assert_close(logits(with_weight(fmfm, torch.diag_embed(d)), fmfm, X), vectorised)
    assert (weighted - vectorised).abs().max() > 0.05


@pytest.mark.parametrize("section", [FwFM(name="fwfm"), FvFM(name="fvfm"), FM(name="fm")])
def test_weights_of_pairs_start_at_an_fm(section: Common) -> None:
    assert_close(logits(built(section), section, X), logits(built(FM(name="fm")), section, X))


def test_matrices_of_pairs_start_near_an_fm() -> None:
    section = FmFM(name="fmfm")
    apart = logits(built(section), section, X) - logits(built(FM(name="fm")), section, X)
    assert 0 < apart.abs().max() < 0.05


def test_the_limits_of_gwpfm() -> None:
    one_part = GwPFM(name="gwpfm", parts={})
    assert_close(logits(built(one_part), one_part, X), logits(built(FM(name="fm")), one_part, X))

    r = torch.zeros(4, 4, dtype=torch.float64)
    for (i, j), value in zip(PAIRS, drawn((6,), 2, 3), strict=True):
        r[i, j] = r[j, i] = value
    own_groups, fwfm = GwPFM(name="gwpfm", parts={}, groups={}), FwFM(name="fwfm")
    expected = logits(with_weight(fwfm, drawn((6,), 2, 3)), fwfm, X)
    assert_close(logits(with_weight(own_groups, r), own_groups, X), expected)

    parts = {f"p{n}": (f"f{n}",) for n in range(4)}
    own_parts = GwPFM(name="gwpfm", parts=parts, groups={"all": ("f0", "f1", "f2", "f3")})
    V = drawn((2, 4, 4, 3), 5, 2)
    others = [torch.cat([V[:, i, j] for j in range(4) if j != i], -1) for i in range(4)]
    ffm = FFM(name="ffm")
    expected = logits(built(ffm, 9), ffm, torch.stack(others, 1))
    assert_close(expected, FIRST_ORDER + torch.tensor([[0.36], [1.03]]), 1e-7)
    assert_close(logits(built(own_parts, 12), own_parts, V.flatten(2)), expected)


def test_layers_over_pairs_are_a_pairwise_model_and_the_fields() -> None:
    section = PFL(name="pfl", num_layers=2, pairs="upper", structure="sum")
    model, fmfm = built(section), FmFM(name="fmfm")
    M = drawn((6, 3, 3), 7, 4)
    with torch.no_grad():
        for (i, j), matrix in zip(PAIRS, M, strict=True):
            interaction(model).weights[0][i, j] = matrix
    expected = logits(with_weight(fmfm, M), fmfm, X) + X.sum((1, 2))[:, None]
    assert_close(logits(model, section, X), expected)


def test_ipnn_is_a_dnn_on_the_fields_and_their_inner_products() -> None:
    products = torch.stack([(X[:, i] * X[:, j]).sum(-1) for i, j in PAIRS], 1)
    for section, x in (
        (IPNN(name="ipnn", hidden=HIDDEN), torch.cat([X.flatten(1), products], 1)),
        (IPNN(name="ipnn", hidden=HIDDEN, include_fields=False), products),
    ):
        model = built(section)
        branch = model.branches[0]
        h = mlp(branch.tower.body, mlp(branch.experts.groups[0].projection, x))
        expected = 0.25 + h @ branch.tower.head.weight.T
        assert_close(logits(model, section, X), expected)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_xdeepfm_adds_first_order_maps_and_deep(activation: str) -> None:
    section = XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(2, 3), activation=activation)
    model = built(section)
    cin = interaction(model)
    maps, pooled = X, []
    for weight in cin.weights:
        C = weight.view(len(weight), -1, 4)
        maps = torch.einsum("hij,bik,bjk->bhk", C, maps, X)
        maps = F.relu(maps) if activation == "relu" else maps
        pooled.append(maps.sum(-1))
    explicit = torch.cat(pooled, 1) @ model.branches[0].tower.head.weight.T
    deep = model.branches[1]
    h = mlp(deep.tower.body, mlp(deep.experts.groups[0].projection, X.flatten(1)))
    expected = FIRST_ORDER + explicit + h @ deep.tower.head.weight.T
    assert_close(logits(model, section, X), expected)
    for branch in model.branches:
        nn.init.zeros_(branch.tower.head.weight)
    assert_close(logits(model, section, X), FIRST_ORDER)


@pytest.mark.parametrize("structure", ["parallel", "stacked", "sum"])
@pytest.mark.parametrize("make", [WFL, DFL, PFL, PFD])
def test_what_stands_above_the_layers(make: type[Common], structure: str) -> None:
    name = make.__name__.lower()
    section = make(name=name, hidden=HIDDEN, num_layers=3, structure=structure)
    model = built(section)
    branch = model.branches[0]
    Z = interaction(model)(X)
    if structure == "sum":
        above = Z.sum(1, keepdim=True)
    elif structure == "stacked":
        h = mlp(branch.tower.body, mlp(branch.experts.groups[0].projection, Z))
        above = h @ branch.tower.head.weight.T
    else:
        deep = mlp(branch.experts.groups[0].interactions[1].mlp, X.flatten(1))
        above = torch.cat([Z, deep], 1) @ branch.tower.head.weight.T
    assert_close(logits(model, section, X), FIRST_ORDER + above)


def test_one_cross_layer_is_pfd_of_two_layers() -> None:
    """Without hidden layers both are a linear map of the fields' layers."""
    crossed = DCNv2(name="dcnv2", hidden=(), num_cross_layers=1, structure="stacked")
    layered = PFD(name="pfd", hidden=(), num_layers=2, structure="stacked")
    left, right = built(crossed), built(layered)
    weight = interaction(left).layers[0].weight.detach().view(4, 3, 4, 3).permute(2, 0, 3, 1)
    with torch.no_grad():
        interaction(right).weights[0].copy_(weight)
        right.branches[0].tower.head.weight.copy_(left.branches[0].tower.head.weight)
    found = logits(right, layered, X) - (FIRST_ORDER - 0.25)
    assert_close(found, logits(left, crossed, X))


MANY = [
    FM(name="fm", projection=5),
    FFM(name="ffm", projection=5),
    FwFM(name="fwfm", projection=5),
    FvFM(name="fvfm", projection=5),
    FmFM(name="fmfm", projection=5),
    GwPFM(name="gwpfm", projection=5, parts={"a": ("f0", "f2")}, groups={}),
    IPNN(name="ipnn", hidden=HIDDEN),
    XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(3, 2)),
    XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(3, 2), activation="relu"),
    DCN(name="dcn", hidden=HIDDEN),
    DCNv2(name="dcnv2", hidden=HIDDEN),
    PFL(name="pfl", hidden=HIDDEN, num_layers=3),
    PFD(name="pfd", hidden=HIDDEN, num_layers=2, structure="sum"),
]


def _ids(section: Common) -> str:
    return str(getattr(section, "name", ""))


@pytest.mark.parametrize("merge", ["mean", "gate"])
@pytest.mark.parametrize("section", MANY, ids=_ids)
def test_sets_and_their_modules_can_be_renumbered(section: Common, merge: str) -> None:
    section = section.model_copy(update={"merge": merge})
    model = built(section, 6, 2)
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 2, 4, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    expected = logits(model, section, first, second)
    assert (logits(model, section, second, first) - expected).abs().max() > 1e-4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".groups." in name or ".gate.context.projections." in name:
                parameter.copy_(parameter.flip(0))
            elif ".gate.scores.weight" in name:  # an expert a row, the sets' contexts side by side
                parameter.copy_(parameter.unflatten(1, (2, -1)).flip(0, 1).flatten(1))
            elif ".gate.scores.bias" in name:
                parameter.copy_(parameter.flip(0))
    assert_close(logits(model, section, second, first), expected, 1e-11)


ADDED_UP = [*MANY[:6], MANY[7], MANY[8], MANY[12]]


@pytest.mark.parametrize("section", ADDED_UP, ids=_ids)
def test_between_products_and_merge_stands_something_non_linear(section: Common) -> None:
    """Products of up to three fields have no fifth difference along a line; a mean adds none."""
    model = built(section, 6, 2)
    for deep in model.branches[1:]:
        nn.init.zeros_(deep.tower.head.weight)
    generator = torch.Generator().manual_seed(3)
    start, along = torch.randn(2, 2, 2, 4, 6, generator=generator, dtype=torch.float64)
    shares = enumerate((1, -5, 10, -10, 5, -1), start=-2)
    fifth = sum(
        share * logits(model, section, *(start + step * along).unbind()) for step, share in shares
    )
    assert fifth.abs().max() > 1e-3
    alone = built(section.model_copy(update={"activation": "identity"}), 6)
    for deep in alone.branches[1:]:
        nn.init.zeros_(deep.tower.head.weight)
    shares = enumerate((1, -5, 10, -10, 5, -1), start=-2)
    fifth = sum(share * logits(alone, section, start[0] + n * along[0]) for n, share in shares)
    assert_close(fifth, torch.zeros(2, 1), 1e-8)


def test_a_merge_before_the_relu_would_be_a_wider_fm() -> None:
    first, second = drawn((2, 4, 3), 3, 1), drawn((2, 4, 3), 5, 4)
    fm = FM(name="fm")
    wide = logits(built(fm, 6), fm, torch.cat([first, second], -1)) - FIRST_ORDER
    assert_close(wide, [[-0.41], [-0.19]])
    narrow = [logits(built(fm), fm, each) - FIRST_ORDER for each in (first, second)]
    assert_close(narrow[0] + narrow[1], wide)
    merged = logits(built(fm, 3, 2), fm, first, second) - FIRST_ORDER
    assert (merged - wide).abs().max() > 1e-2


def test_fms_that_meet_before_the_relu_move_their_tables_as_a_wider_fm_does() -> None:
    first, second = (drawn((2, 4, 3), a, b).requires_grad_() for a, b in ((3, 1), (5, 4)))
    wide = torch.cat([first, second], -1).detach().requires_grad_()
    fm = FM(name="fm")
    narrow = [logits(built(fm), fm, each) for each in (first, second)]
    (narrow[0] + narrow[1] - FIRST_ORDER).square().sum().backward()
    logits(built(fm, 6), fm, wide).square().sum().backward()
    assert wide.grad is not None
    for found, expected in zip((first, second), wide.grad.split(3, -1), strict=True):
        assert found.grad is not None
        assert_close(found.grad, expected)


RECIPE = {
    "name": "parts",
    "data": {"path": "out/x"},
    "features": {"sparse": ["user", "item"], "dense": ["age"]},
    "tasks": [{"name": "click", "label": "click"}],
}


def test_parts_of_a_recipe_name_its_features() -> None:
    model = {"name": "gwpfm", "parts": {"viewer": ["user", "age"]}, "groups": {}}
    recipe = from_dict(RECIPE | {"model": model})
    assert recipe.model.parts == {"viewer": ("user", "age")}
    model["parts"] = {"viewer": ["usr"]}
    with pytest.raises(
        ConfigError, match=r"model\.parts\.viewer: no feature is called 'usr'; did you mean 'user'"
    ):
        from_dict(RECIPE | {"model": model})
    with pytest.raises(ConfigError, match=r"model\.parts: missing \(required\)"):
        from_dict(RECIPE | {"model": {"name": "gwpfm"}})


def test_a_width_that_slots_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"'ffm' cuts .* 3 slots.* width 8 of embedding set 0"):
        build_model(FFM(name="ffm"), covering_all(4, 0, (8,), 1))
