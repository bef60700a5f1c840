import pytest
import torch
from torch import Tensor

from prismrec.models import Inputs
from prismrec.models.experts import ExpertSpec, plan_groups
from prismrec.models.extraction import LayerSpec
from prismrec.models.interactions import BiInteraction, CrossV2Spec, FlatSpec, FMSpec
from prismrec.models.layers import MLPSpec
from prismrec.models.mixture import (
    BranchSpec,
    Composition,
    Fields,
    MixtureSpec,
    RankingModel,
)
from prismrec.models.numeric import NUMERIC_NORM
from tests.unit.models.vectors import assert_close, covering_all

PROJECTION = MLPSpec((6,), 0.0, "layer")


def inputs(fields: Fields, batch: int = 5) -> tuple[list[Tensor], Tensor]:
    sets = [
        torch.randn(batch, count, dim, dtype=torch.float64)
        for count, dim in zip(fields.set_fields, fields.set_dims, strict=True)
    ]
    return sets, torch.randn(batch, fields.num_dense, dtype=torch.float64)


def model_of(branch: BranchSpec | MixtureSpec, fields: Fields) -> RankingModel:
    """The model, with its gate off the uniform start."""
    model = RankingModel(Composition((branch,)), fields).double()
    for name, parameter in model.named_parameters():
        if ".gate.scores.weight" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def merged(specs: tuple[ExpertSpec, ...], merge: str) -> BranchSpec | MixtureSpec:
    """A branch whose experts meet by "mean", "concat" or "gate"."""
    tower = MLPSpec((5,))
    if merge == "gate":
        return MixtureSpec((LayerSpec(specs),), tower)
    return BranchSpec(specs, merge, tower)


def experts(*structures: tuple[int, object]) -> tuple[ExpertSpec, ...]:
    return tuple(ExpertSpec(m, (each,), PROJECTION) for m, each in structures)


def test_groups_are_experts_of_equal_structure_and_shape():
    kinds = (FlatSpec(), FMSpec(), FlatSpec(), FlatSpec(), FlatSpec())
    shapes = ((3, 4), (3, 4), (3, 8), (2, 4), (3, 4))
    plans = plan_groups(experts(*enumerate(kinds)), shapes)
    assert [(p.experts, p.set_indices, p.shape) for p in plans] == [
        ((0, 4), (0, 4), (3, 4)),
        ((1,), (1,), (3, 4)),
        ((2,), (2,), (3, 8)),
        ((3,), (3,), (2, 4)),
    ]


@pytest.mark.parametrize("num_tasks", [1, 2])
@pytest.mark.parametrize("merge", ["mean", "gate", "concat"])
@pytest.mark.parametrize("set_dims", [(4, 4, 4), (4, 8, 4)])
def test_stacked_model_equals_one_expert_at_a_time(merge, set_dims, num_tasks):
    torch.manual_seed(1)
    fields = covering_all(3, 2, set_dims, num_tasks)
    specs = experts((0, CrossV2Spec(2)), (1, CrossV2Spec(2)), (2, CrossV2Spec(2)))
    model = model_of(merged(specs, merge), fields)
    sets, dense = inputs(fields)
    logits, aux = model(Inputs(sets, None, dense))
    assert aux == {}

    branch = model.branches[0]
    layer = branch.extraction.layers[0] if merge == "gate" else branch
    outputs = {}
    for plan, group in zip(layer.experts.plans, layer.experts.groups, strict=True):
        for row, expert in enumerate(plan.experts):
            single = (
                RankingModel(Composition((BranchSpec((specs[expert],)),)), fields)
                .double()
                .branches[0]
                .experts.groups[0]
            )
            single.load_state_dict(
                {k: v[row] if len(plan.experts) > 1 else v for k, v in group.state_dict().items()}
            )
            vectors = dense[..., None] * model.numeric[str(expert)].weight
            outputs[expert] = single(torch.cat([sets[expert], vectors], 1))
    E = [outputs[m] for m in range(3)]
    example = Inputs(sets, None, dense)
    if merge == "gate":
        stacks = [
            torch.stack(
                [
                    torch.cat([sets[m], dense[..., None] * model.numeric[str(m)].weight], 1)
                    for m in g
                ]
            )
            for g in model.plan.stacks
        ]
        G = layer.gate(stacks, example)
        at = [layer.experts.order.index(m) for m in range(3)]
        mixes = [sum(G[:, t, at[m], None] * E[m] for m in range(3)) for t in range(num_tasks)]
        assert_close(logits, branch.tower(torch.stack(mixes, 1), example))
    else:
        assert_close(logits, branch.tower(torch.cat(E, -1) if merge == "concat" else sum(E) / 3))


@pytest.mark.parametrize("merge", ["mean", "gate"])
def test_permuting_sets_with_their_modules_leaves_the_logits(merge):
    torch.manual_seed(1)
    fields = covering_all(3, 2, (4, 4, 4), 2)
    specs = experts(*[(m, FlatSpec()) for m in range(3)])
    model = model_of(merged(specs, merge), fields)
    moved = model_of(merged(specs, merge), fields)
    order = [2, 0, 1]
    state = model.state_dict()
    for name, value in model.state_dict().items():
        if ".groups." in name or ".gate.context.projections." in name:
            state[name] = value[order]
        elif ".gate.scores.weight" in name:
            split = value.unflatten(0, (2, 3)).unflatten(-1, (3, -1))
            state[name] = split[:, order][:, :, order].reshape(value.shape)
        elif name.startswith("numeric."):
            state[name] = model.state_dict()[f"numeric.{order[int(name.split('.')[1])]}.weight"]
    moved.load_state_dict(state)
    sets, dense = inputs(fields)
    assert_close(
        moved(Inputs([sets[m] for m in order], None, dense))[0], model(Inputs(sets, None, dense))[0]
    )


def test_hetero_experts_on_shared_sets_keep_their_order():
    torch.manual_seed(1)
    fields = covering_all(3, 0, (4, 4), 1)
    specs = (
        ExpertSpec(0, (FlatSpec(),)),
        ExpertSpec(0, (FMSpec(),)),
        ExpertSpec(1, (FlatSpec(),)),
    )
    model = model_of(BranchSpec(specs, "concat"), fields)
    sets, dense = inputs(fields)
    vector = torch.cat([sets[0].flatten(1), BiInteraction(4)(sets[0]), sets[1].flatten(1)], 1)
    expected = vector @ model.branches[0].tower.head.weight.T
    assert_close(model(Inputs(sets, None, dense))[0], expected)


def test_a_set_moves_only_the_experts_bound_to_it():
    torch.manual_seed(1)
    fields = covering_all(3, 0, (4, 4), 1)
    model = model_of(BranchSpec(experts((0, FlatSpec()), (1, FlatSpec())), "mean"), fields)
    sets, dense = inputs(fields)
    with torch.no_grad():
        for parameter in model.branches[0].experts.groups.parameters():
            parameter[1] = 0  # the second expert is silent
    sets = [x.requires_grad_() for x in sets]
    model(Inputs(sets, None, dense))[0].sum().backward()
    assert sets[0].grad.abs().max() > 0
    assert sets[1].grad.abs().max() == 0


def test_numeric_columns_are_fields_behind_the_sparse_ones():
    torch.manual_seed(1)
    fields = covering_all(2, 2, (3,), 1)
    model = model_of(BranchSpec((ExpertSpec(0, (FMSpec(),)),), tower=None), fields)
    sets, dense = inputs(fields)
    v = model.numeric["0"].weight
    X = torch.cat([sets[0], dense[:, :, None] * v], 1)
    assert_close(model(Inputs(sets, None, dense))[0], BiInteraction(3)(X).sum(-1, keepdim=True))


def test_numeric_vectors_start_short_whatever_their_width():
    torch.manual_seed(1)
    model = RankingModel(
        Composition((BranchSpec(experts((0, FlatSpec()), (1, FlatSpec()))),)),
        covering_all(1, 400, (8, 32), 1),
    )
    for vectors in model.numeric.values():
        length = vectors.weight.norm(dim=1).mean()
        assert 0.9 * NUMERIC_NORM < length < 1.1 * NUMERIC_NORM


def test_strided_views_give_the_numbers_of_dense_tensors():
    torch.manual_seed(1)
    fields = covering_all(3, 2, (4, 4), 2)
    model = model_of(BranchSpec(experts((0, CrossV2Spec(2)), (1, CrossV2Spec(2))), "mean"), fields)
    packed = torch.randn(5, 3, 12, dtype=torch.float64)
    views = [packed[..., :4], packed[..., 4:8]]
    dense = torch.randn(5, 2, dtype=torch.float64)
    copies = [view.clone() for view in views]
    assert torch.equal(model(Inputs(views, None, dense))[0], model(Inputs(copies, None, dense))[0])


def test_first_order_by_hand():
    model = RankingModel(Composition((), wide=True), covering_all(2, 1, (), 2))
    with torch.no_grad():
        model.first_order.bias.copy_(torch.tensor([0.5, -0.5]))
        model.first_order.weight.copy_(torch.tensor([[2.0, 3.0]]))
    linear = torch.tensor([[[1.0, 10.0], [2.0, 20.0]]])
    logits, _ = model(Inputs([], linear, torch.tensor([[-1.0]])))
    assert logits.tolist() == [[0.5 + 3 - 2, -0.5 + 30 - 3]]


def test_first_order_weights_come_exactly_when_wanted():
    fields = covering_all(2, 0, (4,), 1)
    branch = BranchSpec(experts((0, FlatSpec())))
    sets, dense = [torch.zeros(1, 2, 4)], torch.zeros(1, 0)
    with pytest.raises(ValueError, match="linear must be None for this model, got a tensor"):
        RankingModel(Composition((branch,)), fields)(Inputs(sets, torch.zeros(1, 2, 1), dense))
    with pytest.raises(ValueError, match=r"linear must be a .B, N, T. tensor .* got None"):
        RankingModel(Composition((branch,), wide=True), fields)(Inputs(sets, None, dense))


def test_compositions_that_cannot_be():
    fields = covering_all(2, 0, (4, 8), 1)
    unequal = (ExpertSpec(0, (FlatSpec(),)), ExpertSpec(1, (FlatSpec(),)))
    with pytest.raises(ValueError, match=r"'mean' must have one output width, got \[8, 16\]"):
        RankingModel(Composition((BranchSpec(unequal, "mean"),)), fields)
    with pytest.raises(
        ValueError, match=r"behind a gate must have one output width, got \[8, 16\]"
    ):
        RankingModel(Composition((MixtureSpec((LayerSpec(unequal),)),)), fields)


def test_parameters_lie_in_modules_that_can_reset_themselves():
    specs = experts((0, FlatSpec()), (1, FlatSpec()))
    composition = Composition((MixtureSpec((LayerSpec(specs),)),), wide=True)
    with torch.device("meta"):
        model = RankingModel(composition, covering_all(2, 2, (4, 4), 2))
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    torch.manual_seed(1)
    for module in model.modules():
        if module._parameters:
            assert not list(module.children())
            module.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
