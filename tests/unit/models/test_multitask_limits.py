"""Models that are others in disguise, how they start, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.config.models.decorrelation import Correlation, Covariance
from prismrec.config.models.multitask import (
    AME,
    CGC,
    PLE,
    STEM,
    STEMAL,
    Crocodile,
    MMoE,
    MoE,
    SharedBottom,
)
from prismrec.models import MODELS, Composition, Inputs, RankingModel, build_model
from prismrec.models.experts import ExpertSpec
from prismrec.models.extraction import LayerSpec
from prismrec.models.gates import GateSpec
from prismrec.models.interactions import BiInteraction, Interaction
from prismrec.models.mixture import MixtureSpec
from tests.unit.models.multitask_cases import (
    CASES,
    ONE,
    SMALL,
    THREE,
    TWO,
    built,
    drawn,
    fields,
    stem,
)
from tests.unit.models.vectors import assert_close


def copied(source: nn.Module, target: nn.Module) -> nn.Module:
    """`target` with the weights of `source` by name, its own where there is none."""
    state = target.state_dict()
    for name, value in source.state_dict().items():
        if name in state:
            state[name] = value.reshape(state[name].shape)
    target.load_state_dict(state)
    return target


def test_mmoe_of_one_expert_is_shared_bottom_to_the_bit():
    options = {"hidden": (6, 5), "tower": (4,)}
    bottom = built(SharedBottom(name="shared_bottom", **options), ONE)
    mmoe = copied(bottom, built(MMoE(name="mmoe", num_experts=1, **options), ONE))
    inputs = drawn(ONE)
    stacks = [mmoe._stack(stack, inputs, {}) for stack in mmoe.plan.stacks]
    mixes = [m.branches[0].extraction(stacks, inputs)[0] for m in (bottom, mmoe)]
    assert torch.equal(mixes[0].expand(-1, 2, -1), mixes[1])
    assert_close(bottom(inputs)[0], mmoe(inputs)[0], 1e-14)


def test_moe_is_mmoe_with_tied_gates():
    moe = built(MoE(name="moe", num_experts=3, **SMALL), ONE)
    tied = built(MMoE(name="mmoe", num_experts=3, **SMALL), ONE)
    state = moe.state_dict()
    for name in state:
        if ".gate.scores." in name:
            state[name] = torch.cat([state[name]] * 2)
    tied.load_state_dict(state)
    inputs = drawn(ONE)
    assert_close(moe(inputs)[0], tied(inputs)[0])


def test_cgc_without_own_experts_is_mmoe():
    cgc = built(CGC(name="cgc", shared_experts=3, specific_experts=0, **SMALL), ONE)
    mmoe = built(MMoE(name="mmoe", num_experts=3, **SMALL), ONE)
    mmoe.load_state_dict(cgc.state_dict())
    inputs = drawn(ONE)
    assert torch.equal(cgc(inputs)[0], mmoe(inputs)[0])


def test_ple_of_one_layer_is_cgc():
    options = {"shared_experts": 2, "specific_experts": 1, **SMALL}
    ple, cgc = (
        built(PLE(name="ple", num_layers=1, **options), ONE),
        built(CGC(name="cgc", **options), ONE),
    )
    inputs = drawn(ONE)
    assert torch.equal(ple(inputs)[0], cgc(inputs)[0])


def test_stem_on_equal_sets_without_stops_is_mmoe_whose_gate_reads_twice_the_set():
    section = STEM(name="stem", shared_experts=1, stop_gradient=False, gate_hidden=(), **SMALL)
    plain = fields((4, 4, 4), num_dense=0)
    stem_model = built(section, plain)
    mmoe = built(MMoE(name="mmoe", num_experts=3, **SMALL), fields((4,), num_dense=0))
    state = stem_model.state_dict()
    for name, value in state.items():
        if ".gate.scores." in name:
            state[name] = value.flatten(0, 1) * (2 if name.endswith("weight") else 1)
    mmoe.load_state_dict(state)
    inputs = drawn(fields((4,), num_dense=0))
    same = replace(inputs, sets=inputs.sets * 3)
    assert_close(stem_model(same)[0], mmoe(inputs)[0])


def test_stem_of_one_task_is_a_model_of_two_sets():
    section = STEM(name="stem", shared_experts=1, gate_hidden=(), gate_input="projected", **SMALL)
    model, inputs = built(section, fields((4, 4), 1)), drawn(fields((4, 4), 1))
    two = built(AME(name="ame", **SMALL, norm="none"), fields((4, 4), 1))
    state = model.state_dict()
    renamed = {
        name.replace(".context.projected.", ".context."): value
        for name, value in state.items()
        if not name.endswith(".rows")
    }
    renamed = {n: v[0] if ".gate.scores." in n else v for n, v in renamed.items()}
    two.load_state_dict(renamed)
    assert_close(model(inputs)[0], two(inputs)[0])


def test_permuting_the_sets_of_ame_permutes_its_gates():
    section, shapes = AME(name="ame", **SMALL), fields((4, 8, 12), num_dense=0)
    model, inputs = built(section, shapes), drawn(shapes)
    order = [2, 0, 1]
    turned = fields((12, 4, 8), num_dense=0)
    other = built(section, turned)
    state = {}
    for name, value in model.state_dict().items():
        for new, old in enumerate(order):
            for part in (".experts.groups.", ".context.projections."):
                if f"{part}{old}." in name:
                    state[name.replace(f"{part}{old}.", f"{part}{new}.")] = value
        if ".gate.scores.weight" in name:
            split = value.unflatten(0, (2, 3)).unflatten(-1, (3, -1))
            state[name] = split[:, order][:, :, order].reshape(value.shape)
        elif ".gate.scores.bias" in name:
            state[name] = value.unflatten(0, (2, 3))[:, order].flatten()
        elif ".tower." in name or "first_order" in name:
            state[name] = value
    other.load_state_dict(state)
    assert_close(other(replace(inputs, sets=[inputs.sets[m] for m in order]))[0], model(inputs)[0])


def test_prior_routing_starts_with_large_tasks_on_wide_sets():
    section, shapes = CASES["ame prior"]
    gate = MODELS["ame"](section, shapes).branches[0].layers[0].gate
    assert gate.scores == ((0.0, -1.0, -2.0), (-2.0, -1.0, 0.0))
    torch.manual_seed(1)
    model = build_model(section, shapes)
    (bias,) = (p for n, p in model.named_parameters() if n.endswith(".gate.bias"))
    assert bias.tolist() == [[0, -1, -2], [-2, -1, 0]]


def test_a_model_says_how_many_sets_it_needs():
    for section, shapes, message in (
        (stem(1), TWO, r"'stem' needs 3 embedding sets, one for each of 2 tasks .* there are 2"),
        (STEMAL(name="stem_al"), THREE, r"'stem_al' needs 2 embedding sets.* there are 3"),
        (MMoE(name="mmoe"), TWO, r"'mmoe' reads one embedding set, and there are 2"),
        (AME(name="ame"), ONE, r"'ame' needs 2 embedding sets or more"),
        (Crocodile(name="crocodile", prior_set="b"), TWO, r"'crocodile' needs 2 embedding sets"),
        (Crocodile(name="crocodile", prior_set="cc"), THREE, r"model.prior_set: no set is called"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(section, shapes)


def test_experts_that_cannot_be():
    with pytest.raises(UserError, match="model.specific_experts: there is no expert at all"):
        build_model(CGC(name="cgc", shared_experts=0, specific_experts=0), ONE)
    alone = MMoE(name="mmoe", num_experts=1, decorrelation=Covariance())
    with pytest.raises(UserError, match="model.decorrelation: there is one expert"):
        build_model(alone, ONE)
    pair = MMoE(name="mmoe", num_experts=2, decorrelation=Correlation(), **SMALL)
    assert set(build_model(pair, ONE)(replace_float(drawn(ONE)))[1]) == {"decorrelation"}


def replace_float(inputs: Inputs) -> Inputs:
    return replace(inputs, sets=[x.float() for x in inputs.sets], dense=inputs.dense.float())


def test_stacked_experts_start_apart():
    for case in ("mmoe", "ple", "stem", "ame of pairs"):
        section, shapes = CASES[case]
        torch.manual_seed(1)
        for name, parameter in build_model(section, shapes).named_parameters():
            if ".experts." in name and parameter.dim() == 3:
                apart = torch.pdist(parameter.detach().flatten(1)).min()
                assert apart > 0.1, name
                bound = (6 / sum(parameter.shape[1:])) ** 0.5
                assert 0.8 * bound < parameter.abs().max() <= bound, name


def test_a_set_reaches_only_the_experts_bound_to_it():
    section, shapes = CASES["hetero_me listed"]
    model, inputs = built(section, shapes), drawn(shapes)

    def experts(chosen: Inputs) -> list[Tensor]:
        stacks = [model._stack(stack, chosen, {}) for stack in model.plan.stacks]
        layer = model.branches[0].extraction.layers[0].experts
        outputs = layer.stacked(stacks)
        return [outputs[layer.order.index(m)] for m in range(5)]

    sets = [x.detach().clone() for x in inputs.sets]
    sets[0] += 0.5
    before, after = experts(inputs), experts(replace(inputs, sets=sets))
    on_first = (True, False, False, False, True)
    for was, now, is_bound in zip(before, after, on_first, strict=True):
        assert torch.equal(was, now) != is_bound


class _Summed(Interaction):
    """The sum of an FM's products, one number whatever the width."""

    out_dim = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.products = BiInteraction(dim)

    def forward(self, X: Tensor) -> Tensor:
        return self.products(X).sum(-1, keepdim=True)


@dataclass(frozen=True)
class FieldSums:
    def build(self, num_fields: int, dim: int, copies: int | None) -> _Summed:
        return _Summed(dim)


def test_added_fms_without_layers_are_one_wider_fm():
    """Without a non-linearity between interaction and merge, several sets are one set."""
    plain = fields((4, 8), 1, num_dense=0)
    products = (FieldSums(),)
    experts = tuple(ExpertSpec(m, products) for m in range(2))
    layer = LayerSpec(experts, GateSpec("sum"))
    model = RankingModel(Composition((MixtureSpec((layer,)),)), plain).double()
    nn.init.ones_(model.branches[0].tower.head.weight)
    inputs = drawn(plain)
    wide = torch.cat(inputs.sets, -1)
    pairs = sum((wide[:, i] * wide[:, j]).sum(-1) for i in range(3) for j in range(i))
    assert_close(model(inputs)[0][:, 0], pairs)
