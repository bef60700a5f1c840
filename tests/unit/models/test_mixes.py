"""Gated mixes with numbers by hand: MMoE, STEM, the element-wise gate, and stops by masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prismrec.models import Inputs
from prismrec.models.contexts import ContextSpec
from prismrec.models.experts import ExpertSpec
from prismrec.models.extraction import Extraction, Layer, LayerSpec
from prismrec.models.gates import GateSpec, build_gate, mix
from prismrec.models.interactions import FlatSpec
from prismrec.models.layers import MLPSpec
from prismrec.models.routing import Routing, everything, own_and_shared
from prismrec.models.sources import Take, plan_sources
from tests.unit.models.vectors import assert_close

NOTHING = Inputs([], None, torch.zeros(2, 0))


def numbers(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_mmoe_by_hand():
    plan = plan_sources([(1, 2)], [0])
    experts = (ExpertSpec(0, (FlatSpec(),), MLPSpec((2,))),) * 3
    spec = LayerSpec(experts, GateSpec(context=ContextSpec("concat")))
    layer = Layer(spec, plan, num_tasks=2).double()
    # The vector writes maps as (in, out).
    W = numbers([[1, 0], [0, 1]], [[1, 1], [1, -1]], [[0.5, -0.5], [2, 0]])
    with torch.no_grad():
        linear = layer.experts.groups[0].projection.linears[0]
        linear.weight.copy_(W.mT)
        linear.bias.copy_(numbers([0, 0], [0.5, 0], [0, -1]))
        layer.gate.scores.weight[3:].copy_(numbers([1, 0, -1], [0, 1, 0]).mT)
    x = numbers([1, 2], [-1, 0.5])
    Z, E = layer([x.view(1, 2, 1, 2)], NOTHING)
    assert_close(
        E.transpose(0, 1), [[[1, 2], [3.5, 0], [4.5, 0]], [[0, 0.5], [0, 0], [0.5, 0]]], 1e-15
    )
    G = layer.gate([x.view(1, 2, 1, 2)], NOTHING)
    assert_close(G[:, 0], torch.full((2, 3), 1 / 3), 1e-7)
    of_second = [[0.25949646, 0.70538451, 0.03511903], [0.07769558, 0.34820743, 0.57409699]]
    assert_close(G[:, 1], of_second, 5e-9)
    expected = [
        [[3, 0.66666667], [2.88637788, 0.51899292]],
        [[0.16666667, 0.16666667], [0.2870484964, 0.0388477896]],
    ]
    assert_close(Z, expected, 5e-9)


def test_stem_by_hand():
    """Experts 3, 6 and -3 of A, B and shared under equal gates: 2, and B's gets no gradient of A."""
    E = numbers([[3]], [[6]], [[-3]]).requires_grad_()
    gates = torch.full((1, 2, 3), 1 / 3, dtype=torch.float64)
    keep = torch.tensor(own_and_shared([0, 1, 2], [0, 1], 2))
    Z = mix(E, gates, keep)
    assert_close(Z.flatten(), [2, 2], 1e-15)
    (of_a,) = torch.autograd.grad(Z[0, 0, 0], E, retain_graph=True)
    assert of_a.flatten().tolist() == pytest.approx([1 / 3, 0, 1 / 3], abs=1e-15)
    assert of_a[1] == 0
    (of_b,) = torch.autograd.grad(Z[0, 1, 0], E)
    assert of_b.flatten().tolist() == pytest.approx([0, 1 / 3, 1 / 3], abs=1e-15)


@pytest.mark.parametrize("dims", [3, 4])
def test_two_products_with_a_mask_are_experts_detached_one_by_one(dims):
    torch.manual_seed(1)
    E = torch.randn(4, 5, 3, dtype=torch.float64).requires_grad_()
    shape = (5, 2, 4) if dims == 3 else (5, 2, 4, 3)
    G = torch.rand(*shape, dtype=torch.float64).requires_grad_()
    keep = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])
    every = G.unsqueeze(-1) if dims == 3 else G
    rows = E.transpose(0, 1).unsqueeze(1)
    kept = torch.where(keep.bool()[None, :, :, None], rows, rows.detach())
    expected, ours = (every * kept).sum(2), mix(E, G, keep)
    assert_close(ours, expected, 1e-15)
    cotangent = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (E, G), cotangent),
        torch.autograd.grad(expected, (E, G), cotangent),
        strict=True,
    ):
        assert_close(mine, theirs, 1e-14)


def element_gate(num_experts: int = 2, width: int = 2):
    plan = plan_sources([(1, 2)], [0])
    spec = GateSpec("elements", ContextSpec("concat", (0,)))
    return build_gate(spec, plan, everything(1, num_experts), width).double()


def test_element_wise_gate_by_hand():
    gate = element_gate()
    with torch.no_grad():
        gate.scores.weight.copy_(numbers([0, 1, -1, 0], [0.5, 0, 0, 0.5]).mT)
    g = gate([numbers([1, 2]).view(1, 1, 1, 2)], NOTHING)
    assert_close(g, [[[[0.88079708, 0.5], [0.11920292, 0.5]]]], 5e-9)
    assert_close(mix(numbers([[1, 2]], [[3, 4]]), g), [[[1.238405844, 3]]], 5e-10)


def test_element_wise_gates_add_to_one_over_experts_for_each_element():
    torch.manual_seed(1)
    gate = element_gate(4, 3)
    assert_close(gate([torch.randn(1, 5, 1, 2).double()], NOTHING), torch.full((5, 1, 4, 3), 0.25))
    torch.nn.init.normal_(gate.scores.weight)
    g = gate([torch.randn(1, 5, 1, 2).double()], NOTHING)
    assert_close(g.sum(2), torch.ones(5, 1, 3))
    assert (g[..., 0] - g[..., 1]).abs().max() > 0.01


def test_unseen_experts_leave_the_softmax_of_the_seen_ones():
    """-inf on what a reader does not see is the softmax over the rest, to the bit."""
    torch.manual_seed(1)
    plan = plan_sources([(2, 2)], [0])
    use = ((True, False, True, True), (False, True, False, False))
    gate = build_gate(GateSpec(context=ContextSpec("concat", (0,))), plan, use, 1).double()
    torch.nn.init.normal_(gate.scores.weight)
    x = torch.randn(1, 6, 2, 2).double()
    G = gate([x], NOTHING)
    scores = (x.flatten(-2)[0] @ gate.scores.weight.T).unflatten(1, (2, 4))
    assert torch.equal(G[:, 0, [0, 2, 3]], torch.softmax(scores[:, 0, [0, 2, 3]], -1))
    assert torch.equal(G[:, 1], numbers(0, 1, 0, 0).expand(6, 4))
    assert torch.equal(G[:, 0, 1], torch.zeros(6).double())


def test_zero_gates_take_the_mean_of_what_a_task_sees():
    plan = plan_sources([(1, 2)], [0])
    experts = (ExpertSpec(0, (FlatSpec(),), MLPSpec((2,))),) * 3
    use = own_and_shared([0, 1, 2], [0, 1], 2)
    spec = LayerSpec(experts, GateSpec(context=ContextSpec("concat")), Routing(use=use))
    layer = Layer(spec, plan, 2).double()
    Z, E = layer([torch.randn(1, 5, 1, 2).double()], NOTHING)
    assert_close(Z[:, 0], (E[0] + E[2]) / 2)
    assert_close(Z[:, 1], (E[1] + E[2]) / 2)


def test_sources_in_a_row_are_a_view_and_others_a_copy():
    plan = plan_sources([(1, 2), (3, 2), (1, 2), (1, 2)], [0, 1, 2, 3])
    assert plan.stacks == ((0, 2, 3), (1,))
    stacks = [torch.randn(3, 4, 1, 2), torch.randn(1, 4, 3, 2)]
    view = Take(plan, (2, 3))(stacks)
    assert view.data_ptr() == stacks[0][1].data_ptr()
    assert torch.equal(view, stacks[0][1:])
    assert torch.equal(Take(plan, (3, 0, 3))(stacks), stacks[0][[2, 0, 2]])
    assert Take(plan, (1,))(stacks) is stacks[1]
    with pytest.raises(ValueError, match=r"must have one shape, got \[\(1, 2\), \(3, 2\)\]"):
        Take(plan, (0, 1))


def test_layers_that_cannot_be():
    plan = plan_sources([(1, 2), (1, 3)], [0, 1])
    pair = tuple(ExpertSpec(m, (FlatSpec(),), MLPSpec((2,))) for m in range(2))

    def layer(**options) -> Layer:
        return Layer(LayerSpec(pair, **options), plan, num_tasks=2)

    with pytest.raises(
        ValueError, match="`use` must have 2 rows, one for each reader, of 2 experts"
    ):
        layer(routing=Routing(use=((True, True),)))
    with pytest.raises(ValueError, match=r"readers \[1\] see no expert"):
        layer(routing=Routing(use=((True, True), (False, False))))
    routing = Routing(use=((True, True), (False, True)))
    with pytest.raises(ValueError, match="readers that share a gate must see the same experts"):
        layer(gate=GateSpec("mean", is_common=True), routing=routing)
    with pytest.raises(ValueError, match="a gate of 2 readers needs as many own sources, got 1"):
        layer(gate=GateSpec(context=ContextSpec("own", (0,))))
    with pytest.raises(ValueError, match="a gate adds sources of one shape"):
        layer(gate=GateSpec(context=ContextSpec("own", (0, 0), shared=1)))
    with pytest.raises(ValueError, match=r"scores must start as \(2, 2\), got \(1, 2\)"):
        layer(gate=GateSpec("static", scores=((0.0, 1.0),)))
    with pytest.raises(ValueError, match="nobody reads the shared stream of the last layer"):
        Extraction([LayerSpec(pair, has_shared_stream=True)], plan, 2)
