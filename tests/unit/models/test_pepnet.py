"""PEPNet: gates that start at 1, and who is trained through what."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prismrec.models import Fields, Inputs
from prismrec.models.heads.pepnet import GateUnit, Pepnet, PepnetSpec
from prismrec.models.layers import MLPSpec
from tests.unit.models.vectors import assert_close

FIELDS = Fields(4, 1, (4, 2, 3), 2, (4, 2, 1), sets=("main", "prior", "domain"))
SPEC = PepnetSpec(prior_set=1, domain_set=2, tower=MLPSpec((6, 5)))


def given(rows: int = 5) -> Inputs:
    torch.manual_seed(1)
    sets = [
        torch.randn(rows, n, d, dtype=torch.float64, requires_grad=True)
        for n, d in zip(FIELDS.set_fields, FIELDS.set_dims, strict=True)
    ]
    return Inputs(sets, None, torch.randn(rows, 1, dtype=torch.float64))


def built(**changes) -> Pepnet:
    torch.manual_seed(0)
    return Pepnet(FIELDS, dataclasses.replace(SPEC, **changes)).double()


def open_gates(model: Pepnet) -> Pepnet:
    """The gates' last layers drawn, so that gates differ from 1."""
    for module in model.modules():
        if isinstance(module, GateUnit):
            nn.init.normal_(module.leave.weight)
            nn.init.normal_(module.leave.bias)
    return model


def plain(model: Pepnet, x: Tensor) -> Tensor:
    """A tower per task on the same vector, without gates."""
    logits = []
    for t in range(2):
        h = x
        for linear in model.linears:
            h = F.relu(h @ linear.weight[t].T + linear.bias[t])
        logits.append(h @ model.head.weight[t].T)
    return torch.cat(logits, 1) + model.bias.bias


def test_a_gate_unit_is_its_formula():
    gate = GateUnit(2, 2).double()
    with torch.no_grad():
        gate.enter.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, -1.0]]).T)
        gate.leave.weight.copy_(torch.diag(torch.tensor([0.5, -0.25])))
    a = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    assert_close(F.relu(gate.enter(a)), [[1.0, 2.5]])
    assert_close(gate(a), [[1.2449186624, 0.6972902707]], 1e-10)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_gates_change_nothing_at_the_start(position):
    model, inputs = built(position=position), given()
    logits, auxiliary = model(inputs)
    assert torch.equal(
        model.input_gate(torch.randn(5, 3 + 20).double()), torch.ones(5, 20).double()
    )
    assert_close(logits, plain(model, model.flat(inputs)))
    assert auxiliary == {}
    half = built(gamma=1.0)(inputs)[0] - built(gamma=2.0)(inputs)[0]
    assert half.abs().max() > 1e-3


def gated(model: Pepnet, inputs: Inputs) -> Tensor:
    """The logits, task by task and layer by layer."""
    x, prior = model.flat(inputs), model.prior(inputs)
    o = model.input_gate(torch.cat([model.domain(inputs), x], 1)) * x
    context, logits = torch.cat([prior, o], 1), []
    for t in range(2):
        deltas = [gate(context).chunk(2, 1)[t] for gate in model.gates]
        h = o
        for layer, linear in enumerate(model.linears):
            if model.position == "pre":
                h = F.relu((deltas[layer] * h) @ linear.weight[t].T + linear.bias[t])
            else:
                h = deltas[layer] * F.relu(h @ linear.weight[t].T + linear.bias[t])
        if model.position == "pre":
            h = deltas[-1] * h
        logits.append(h @ model.head.weight[t].T)
    return torch.cat(logits, 1) + model.bias.bias


@pytest.mark.parametrize("position", ["pre", "post"])
def test_the_model_is_its_formula(position):
    model, inputs = open_gates(built(position=position)), given()
    assert_close(model(inputs)[0], gated(model, inputs))
    assert (model(inputs)[0] - plain(model, model.flat(inputs))).abs().max() > 0.1


def test_gates_before_a_layer_are_those_behind_the_one_below():
    before, after = open_gates(built(position="pre")), built(position="post")
    with torch.no_grad():
        before.gates[0].leave.weight.zero_()
        before.gates[0].leave.bias.zero_()
    state = before.state_dict()
    moved = {f"gates.{i}": f"gates.{i + 1}" for i in range(2)}
    after.load_state_dict(
        {
            name: state[moved.get(name[:7], name[:7]) + name[7:]]
            if name[:6] == "gates."
            else state[name]
            for name in after.state_dict()
        }
    )
    inputs = given()
    assert_close(before(inputs)[0], after(inputs)[0])


def test_vectors_are_trained_through_the_towers_alone():
    model, inputs = open_gates(built()), given()
    model(inputs)[0].sum().backward()
    x = inputs.sets[0].grad.clone()
    assert x.abs().sum() > 0
    with torch.no_grad():
        flat = model.flat(inputs)
        gate = model.input_gate(torch.cat([model.domain(inputs), flat], 1))
        context = torch.cat([model.prior(inputs), gate * flat], 1)
        deltas = [each(context).unflatten(1, (2, -1)).transpose(0, 1) for each in model.gates]
    again = inputs.sets[0].detach().clone().requires_grad_()
    frozen = model.flat(Inputs([again, *inputs.sets[1:]], None, inputs.dense)) * gate
    h = frozen.expand(2, -1, -1)
    for delta, linear in zip(deltas, [*model.linears, None], strict=True):
        h = delta * h
        h = F.relu(linear(h)) if linear is not None else h
    (h @ model.head.weight.mT).sum().backward()
    assert_close(x, again.grad)


def test_prior_vectors_are_trained_through_the_gates_alone():
    model, inputs = built(), given()
    model(inputs)[0].sum().backward()
    for index in (1, 2):  # gates stand at 1 for whatever input, as long as their last layers are 0
        assert not inputs.sets[index].grad.any()
    model, inputs = open_gates(built()), given()
    model(inputs)[0].sum().backward()
    assert all(inputs.sets[index].grad.any() for index in (1, 2))


def test_a_task_trains_its_own_towers_and_gates():
    model, inputs = open_gates(built()), given()
    model(inputs)[0][:, 0].sum().backward()
    for parameter in (*model.linears.parameters(), *model.head.parameters()):
        assert parameter.grad[0].any()
        assert not parameter.grad[1].any()
    for gate in model.gates:
        own, other = gate.leave.weight.grad.chunk(2)
        assert own.any()
        assert not other.any()
    assert inputs.sets[2].grad.any()


def test_the_input_gate_may_be_left_out():
    model = built(domain_set=None)
    assert model.domain is None
    assert not hasattr(model, "input_gate")
    inputs = given()
    # Without its role the set is one of x.
    assert model.flat.indices == (0, 2)
    assert_close(model(inputs)[0], plain(model, model.flat(inputs)))


def test_a_set_has_to_be_left_for_the_towers():
    with pytest.raises(ValueError, match="a set besides those of domain and prior"):
        Pepnet(Fields(2, 0, (4, 4), 1, (2, 2)), PepnetSpec(0, 1, MLPSpec((4,))))
