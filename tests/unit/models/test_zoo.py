import dataclasses
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.config.models import BUILT_IN, Custom
from prismrec.config.models.single import (
    DCN,
    DFL,
    DNN,
    FFM,
    FM,
    IPNN,
    LR,
    PFD,
    PFE,
    PFL,
    PFT,
    WFL,
    DCNv2,
    DeepFM,
    FmFM,
    FvFM,
    FwFM,
    GwPFM,
    WideDeep,
    XDeepFM,
)
from prismrec.models import MODELS, Fields, Inputs, build_model, needs_linear
from tests.helpers.losses import global_mean_bce
from tests.unit.models.vectors import assert_close, axes, covering_all

HIDDEN = (6, 5)
SECTIONS = [
    LR(name="lr"),
    FM(name="fm", projection=5),
    DNN(name="dnn", hidden=HIDDEN),
    FFM(name="ffm", projection=5),
    FwFM(name="fwfm", projection=5),
    FwFM(name="fwfm", projection=5, rank=2),
    FvFM(name="fvfm", projection=5),
    FmFM(name="fmfm", projection=5),
    GwPFM(name="gwpfm", projection=5, parts={"a": ("f0", "n1")}, groups={}),
    WideDeep(name="wide_deep", hidden=HIDDEN, norm="batch"),
    DeepFM(name="deepfm", hidden=HIDDEN),
    IPNN(name="ipnn", hidden=HIDDEN),
    XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(3, 2)),
    XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(4,), activation="relu"),
    DCN(name="dcn", hidden=HIDDEN, norm="none"),
    DCNv2(name="dcnv2", hidden=HIDDEN),
    DCNv2(name="dcnv2", hidden=HIDDEN, structure="stacked", cross_rank=2, dropout=0.1),
    WFL(name="wfl", hidden=HIDDEN, num_layers=3),
    DFL(name="dfl", hidden=HIDDEN, num_layers=3, structure="stacked"),
    PFL(name="pfl", hidden=HIDDEN, num_layers=3),
    PFT(name="pft", hidden=HIDDEN, num_layers=2, structure="stacked"),
    PFE(name="pfe", hidden=HIDDEN, num_layers=3, pairs="offdiag"),
    PFD(name="pfd", hidden=HIDDEN, num_layers=3, structure="sum"),
]
ONE_SET = covering_all(3, 2, (4,), 1)


def ids(section):
    return f"{section.name}-{getattr(section, 'structure', '')}"


def inputs(section, fields: Fields, batch: int = 7, dtype=torch.float64):
    torch.manual_seed(2)
    sets = [
        torch.randn(batch, n, d, dtype=dtype)
        for n, d in zip(fields.set_fields, fields.set_dims, strict=True)
    ]
    linear = torch.randn(batch, fields.num_sparse, fields.num_tasks, dtype=dtype)
    dense = torch.randn(batch, fields.num_dense, dtype=dtype)
    return sets, linear if needs_linear(section) else None, dense


def built(section, fields: Fields) -> nn.Module:
    torch.manual_seed(1)
    return build_model(section, fields).double()


def field_vectors(model: nn.Module, sets: list[Tensor], dense: Tensor, m: int = 0) -> Tensor:
    return torch.cat([sets[m], dense[..., None] * model.numeric[str(m)].weight], 1)


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    """Linear, layer norm, ReLU, from the weights of an MLP of one copy."""
    for linear, norm in zip(module.linears, module.norms, strict=True):
        x = F.linear(x, linear.weight, linear.bias)
        x = F.relu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias))
    return x


def first_order(model: nn.Module, linear: Tensor, dense: Tensor) -> Tensor:
    return model.first_order.bias + linear.sum(1) + dense @ model.first_order.weight


def pairs(X: Tensor) -> Tensor:
    n = X.shape[1]
    return sum((X[:, i] * X[:, j]).sum(-1, keepdim=True) for i in range(n) for j in range(i + 1, n))


def crossed(cross: nn.Module, x0: Tensor) -> Tensor:
    x = x0
    for layer in cross.layers:
        x = x0 * (x @ layer.weight.T + layer.bias) + x
    return x


def test_the_zoo_holds_every_model_of_the_schema():
    assert MODELS.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_needs_linear_says_what_the_composition_does(section):
    assert needs_linear(section) == MODELS[section.name](section, ONE_SET).wide


def test_lr_needs_no_sets():
    model = built(LR(name="lr"), covering_all(3, 2, (), 1))
    _, linear, dense = inputs(LR(name="lr"), covering_all(3, 2, (), 1))
    nn.init.normal_(model.first_order.weight)
    assert_close(model(Inputs([], linear, dense))[0], first_order(model, linear, dense))


def test_lr_is_its_bias_without_weights_and_additive_over_features():
    model = built(LR(name="lr"), covering_all(4, 0, (), 1))
    nn.init.constant_(model.first_order.bias, 0.75)
    dense = torch.zeros(2, 0, dtype=torch.float64)
    w = torch.randn(2, 4, 1, dtype=torch.float64)
    left, right = w.clone(), w.clone()
    left[:, 2:], right[:, :2] = 0, 0
    bias, both, first, second = (
        model(Inputs([], x, dense))[0] for x in (torch.zeros_like(w), w, left, right)
    )
    assert_close(bias, torch.full((2, 1), 0.75))
    assert_close(both - bias, (first - bias) + (second - bias))


def test_fm_is_first_order_and_all_pairs():
    section = FM(name="fm")
    model = built(section, ONE_SET)
    sets, linear, dense = inputs(section, ONE_SET)
    expected = first_order(model, linear, dense) + pairs(field_vectors(model, sets, dense))
    assert_close(model(Inputs(sets, linear, dense))[0], expected)


@pytest.mark.parametrize(
    "section", [SECTIONS[2], DCNv2(name="dcnv2", hidden=HIDDEN, structure="stacked")]
)
def test_one_set_is_the_single_embedding_model_to_the_bit(section):
    torch.manual_seed(1)
    model = build_model(section, ONE_SET)
    sets, _, dense = inputs(section, ONE_SET, dtype=torch.float32)
    x = field_vectors(model, sets, dense).flatten(1)
    group, tower = model.branches[0].experts.groups[0], model.branches[0].tower
    if section.name == "dcnv2":
        x0 = x
        for layer in group.interactions[0].layers:
            x = torch.addcmul(x, x0, F.linear(x, layer.weight, layer.bias))
    h = mlp(tower.body, mlp(group.projection, x))
    assert torch.equal(model(Inputs(sets, None, dense))[0], F.linear(h, tower.head.weight) + 0.0)


def test_dcn_and_dcnv2_parallel_are_one_linear_map_of_both_halves():
    for section in (DCN(name="dcn", hidden=HIDDEN), DCNv2(name="dcnv2", hidden=HIDDEN)):
        model = built(section, ONE_SET)
        sets, _, dense = inputs(section, ONE_SET)
        x = field_vectors(model, sets, dense).flatten(1)
        branch = model.branches[0]
        cross, deep = branch.experts.groups[0].interactions
        if section.name == "dcnv2":
            xL = crossed(cross, x)
        else:
            xL = x * (1 + x @ cross.weight.T).prod(1, keepdim=True)
        both = torch.cat([xL, mlp(deep.mlp, x)], 1)
        expected = both @ branch.tower.head.weight.T + model.first_order.bias
        assert_close(model(Inputs(sets, None, dense))[0], expected)


@pytest.mark.parametrize("num_sets", [1, 3])
def test_wide_deep_without_its_head_is_lr(num_sets):
    section = WideDeep(name="wide_deep", hidden=HIDDEN)
    fields = covering_all(3, 2, (4,) * num_sets, 1)
    model = built(section, fields)
    sets, linear, dense = inputs(section, fields)
    nn.init.normal_(model.first_order.weight)
    nn.init.zeros_(model.branches[0].tower.head.weight)
    assert torch.equal(model(Inputs(sets, linear, dense))[0], model.first_order(linear, dense))
    assert_close(model(Inputs(sets, linear, dense))[0], first_order(model, linear, dense))


def test_deepfm_without_its_deep_head_is_fm():
    section = DeepFM(name="deepfm", hidden=HIDDEN)
    model, fm = built(section, ONE_SET), built(FM(name="fm"), ONE_SET)
    sets, linear, dense = inputs(section, ONE_SET)
    deep = model(Inputs(sets, linear, dense))[0]
    nn.init.zeros_(model.branches[1].tower.head.weight)
    fm.numeric.load_state_dict(model.numeric.state_dict())
    assert_close(model(Inputs(sets, linear, dense))[0], fm(Inputs(sets, linear, dense))[0])
    assert (deep - fm(Inputs(sets, linear, dense))[0]).abs().max() > 1e-3


def test_deepfm_adds_first_order_pairs_and_deep():
    section = DeepFM(name="deepfm", hidden=HIDDEN)
    model = built(section, ONE_SET)
    sets, linear, dense = inputs(section, ONE_SET)
    X = field_vectors(model, sets, dense)
    deep = model.branches[1]
    h = mlp(deep.tower.body, mlp(deep.experts.groups[0].projection, X.flatten(1)))
    expected = first_order(model, linear, dense) + pairs(X) + h @ deep.tower.head.weight.T
    assert_close(model(Inputs(sets, linear, dense))[0], expected)


def one_set_of(model: nn.Module, m: int, num_sets: int) -> nn.Module:
    """Group 0 of the first branch, with the weights of set m alone."""
    group = model.branches[0].experts.groups[0]
    fields = ONE_SET
    section = DNN(name="dnn", hidden=HIDDEN)
    single = built(section, fields).branches[0].experts.groups[0]
    assert num_sets > 1
    single.load_state_dict({name: value[m] for name, value in group.state_dict().items()})
    return single


def test_dnn_on_three_sets_averages_after_the_relu():
    section = DNN(name="dnn", hidden=HIDDEN)
    fields = covering_all(3, 2, (4, 4, 4), 1)
    model = built(section, fields)
    sets, _, dense = inputs(section, fields)
    group, tower = model.branches[0].experts.groups[0], model.branches[0].tower
    hidden = []
    for m in range(3):
        x = field_vectors(model, sets, dense, m).flatten(1)
        linear, norm = group.projection.linears[0], group.projection.norms[0]
        x = F.layer_norm(x @ linear.weight[m].T + linear.bias[m], (6,))
        hidden.append(F.relu(x * norm.weight[m] + norm.bias[m]))
    expected = mlp(tower.body, sum(hidden) / 3) @ tower.head.weight.T
    assert_close(model(Inputs(sets, None, dense))[0], expected)


def test_averaging_fm_without_the_relu_would_be_a_wider_fm():
    """The sum of two sets' FM is the FM of the sets side by side; with the ReLU it is not."""
    torch.manual_seed(1)
    first, second = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    assert_close(pairs(first) + pairs(second), pairs(torch.cat([first, second], -1)))
    section = FM(name="fm", projection=5)
    fields = covering_all(3, 0, (4, 4), 1)
    model = built(section, fields)
    linear, dense = torch.zeros(7, 3, 1, dtype=torch.float64), torch.zeros(7, 0)

    def logit(a: float) -> Tensor:
        return model(Inputs([first + a * second, first - a * second], linear, dense))[0]

    # Any function of an FM's degree has no fourth difference in a.
    fourth = logit(-2) - 4 * logit(-1) + 6 * logit(0) - 4 * logit(1) + logit(2)
    assert fourth.abs().max() > 1e-3


@pytest.mark.parametrize("num_tasks", [1, 2])
@pytest.mark.parametrize(
    ("set_dims", "merge"), [((4,), "mean"), ((4, 4, 4), "mean"), ((4, 8, 4), "gate")]
)
@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_every_parameter_gets_a_gradient(section, set_dims, merge, num_tasks):
    section = section.model_copy(update={"merge": merge})
    fields = covering_all(3, 2, set_dims, num_tasks)
    model = built(section, fields)
    sets, linear, dense = inputs(section, fields)
    leaves = [x.requires_grad_() for x in sets if section.name != "lr"]
    leaves += [] if linear is None else [linear.requires_grad_()]
    logits, aux = model(Inputs(sets, linear, dense))
    assert (logits.shape, aux) == ((7, num_tasks), {})
    valid = torch.ones(7, num_tasks)
    valid[:, 1:] = 0
    ones = torch.ones(7, num_tasks)
    total, _ = global_mean_bce(logits, 0 * ones, valid, ones, torch.ones(num_tasks))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(x.grad.abs().max() > 0 for x in leaves)


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_sets_start_apart(section):
    """In all that is drawn; what starts at a constant, such as the weights of pairs, does not."""
    fields = covering_all(3, 2, (4, 4), 1)
    for name, parameter in built(section, fields).named_parameters():
        is_drawn = ".groups." in name and parameter.dim() >= 3 and parameter[0].unique().numel() > 1
        if is_drawn:
            assert (parameter[0] - parameter[1]).abs().max() > 0.01, name


def test_tasks_of_an_fm_weigh_its_products_by_themselves():
    section, fields = FM(name="fm"), dataclasses.replace(ONE_SET, num_tasks=2)
    model = built(section, fields)
    sets, linear, dense = inputs(section, fields)
    X = field_vectors(model, sets, dense)
    expected = first_order(model, linear, dense) + pairs(X)
    assert_close(model(Inputs(sets, linear, dense))[0], expected)
    assert model.branches[0].tower.weight.shape == (2, 4)


def test_several_sets_need_a_hidden_layer():
    section = DNN(name="dnn", hidden=())
    assert build_model(section, ONE_SET) is not None
    for each in (section, DCNv2(name="dcnv2", hidden=())):
        with pytest.raises(UserError, match=r"model\.hidden: 2 embedding sets meet behind"):
            build_model(each, covering_all(3, 0, (4, 4), 1))


def test_a_model_of_sets_needs_a_set():
    with pytest.raises(UserError, match="only 'lr' works without an embedding set"):
        build_model(FM(name="fm"), covering_all(3, 0, (), 1))


@pytest.mark.parametrize(
    ("section", "set_dims"),
    [
        (DCNv2(name="dcnv2", hidden=HIDDEN), (4, 4)),
        (DCNv2(name="dcnv2", hidden=HIDDEN, merge="gate", norm="batch"), (4, 8)),
        (DeepFM(name="deepfm", hidden=HIDDEN), (4,)),
        (FFM(name="ffm"), (4,)),
        (FwFM(name="fwfm", rank=2, projection=5), (4, 4)),
        (FmFM(name="fmfm", projection=5), (4, 4)),
        (GwPFM(name="gwpfm", parts={"a": ("f0", "n1")}, groups={}, merge="gate"), (4, 8)),
        (IPNN(name="ipnn", hidden=HIDDEN), (4,)),
        (XDeepFM(name="xdeepfm", hidden=HIDDEN, maps=(3, 2)), (4, 4)),
        (PFE(name="pfe", hidden=HIDDEN, num_layers=3), (4, 4)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_export_with_a_dynamic_batch_gives_the_eager_logits(section, set_dims):
    fields = covering_all(3, 2, set_dims, 2)
    model = built(section, fields).eval()
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    example = Inputs(*inputs(section, fields))
    shapes = {"inputs": axes(example, {0: batch})}
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    for rows in (1, 7, 32):
        example = Inputs(*inputs(section, fields, batch=rows))
        assert_close(program.module()(example)[0], model(example)[0])


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_bfloat16_autocast_stays_near_float32(section):
    section = section.model_copy(update={"merge": "gate"})
    fields = covering_all(3, 2, (8, 8), 2)
    torch.manual_seed(1)
    model = build_model(section, fields).eval()
    example = Inputs(*inputs(section, fields, batch=64, dtype=torch.float32))
    exact = model(example)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(example)[0]
        rounded.sum().backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.06)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("section", SECTIONS, ids=ids)
def test_every_model_learns_a_small_set_of_rows(section):
    fields = covering_all(3, 2, (4, 4), 1)
    torch.manual_seed(1)
    model = build_model(section, fields)
    ids = torch.randint(0, 20, (64, 3))
    tables = [nn.Parameter(0.1 * torch.randn(20, 4)) for _ in range(2)]
    weights = nn.Parameter(torch.zeros(20, 1))
    dense, labels = torch.randn(64, 2), (torch.rand(64, 1) > 0.5).float()
    ones = torch.ones(64, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *tables, weights], 0.02)
    losses = []
    for _ in range(60):
        linear = weights[ids] if needs_linear(section) else None
        logits, _ = model(Inputs([table[ids] for table in tables], linear, dense))
        total, _ = global_mean_bce(logits, labels, ones, ones, torch.ones(1))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def team_module():
    module = types.ModuleType("team_of_the_test")

    def build(fields, options):
        return nn.Linear(fields.num_dense, options["width"])

    module.build = build
    module.number = 3
    module.make_number = lambda fields, options: 3
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


def test_a_custom_model_is_built_from_fields_and_options(team_module):
    model = build_model(Custom(name=f"{team_module}:build", options={"width": 5}), ONE_SET)
    assert model.weight.shape == (5, 2)
    assert not needs_linear(Custom(name=f"{team_module}:build"))


def test_a_custom_model_that_cannot_be_had(team_module):
    for name, message in {
        "no_such_team:build": "'no_such_team' cannot be imported .No module named",
        f"{team_module}:biuld": "has no function 'biuld'; did you mean 'build'",
        f"{team_module}:number": "has no function 'number'",
        f"{team_module}:make_number": "returned int; it must return a torch.nn.Module",
    }.items():
        with pytest.raises(UserError, match=message):
            build_model(Custom(name=name), ONE_SET)
