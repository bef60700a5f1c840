import math

import torch

from prismrec.models import Inputs
from prismrec.models.contexts import ContextSpec
from prismrec.models.gates import GateSpec, build_gate, mix
from prismrec.models.layers import MLPSpec
from prismrec.models.routing import everything
from prismrec.models.sources import plan_sources
from prismrec.models.towers import SharedTower, SumHead, TaskTowers
from tests.unit.models.vectors import assert_close


def test_gate_arithmetic_by_hand():
    gates = torch.softmax(torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64), -1)
    assert_close(gates, [[[0.25, 0.75]]])
    experts = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64)
    assert_close(mix(experts, gates), [[[0.25, 1.5]]])


def gate_over(shapes, num_experts: int, num_readers: int, width: int = 64):
    """A softmax gate whose context is all sources, and the stacks of drawn ones."""
    plan = plan_sources(shapes, range(len(shapes)))
    spec = GateSpec(context=ContextSpec(sources=tuple(range(len(shapes))), width=width))
    torch.manual_seed(1)
    gate = build_gate(spec, plan, everything(num_readers, num_experts), elements=1).double()
    stacks = [
        torch.randn(len(stack), 6, *shapes[stack[0]], dtype=torch.float64) for stack in plan.stacks
    ]
    return gate, stacks


NOTHING = Inputs([], None, torch.zeros(6, 0))


def test_gate_starts_at_the_mean():
    gate, stacks = gate_over([(2, 3), (1, 4), (1, 4)], num_experts=3, num_readers=2)
    assert_close(gate(stacks, NOTHING), torch.full((6, 2, 3), 1 / 3), 1e-7)


def test_gate_is_a_distribution_per_task():
    gate, stacks = gate_over([(1, 4), (1, 4)], num_experts=2, num_readers=3)
    torch.nn.init.normal_(gate.scores.weight)
    gates = gate(stacks, NOTHING)
    assert_close(gates.sum(-1), torch.ones(6, 3), 1e-6)
    assert (gates[:, 0] - gates[:, 1]).abs().max() > 1e-3
    assert (gates[0] - gates[1]).abs().max() > 1e-3


def test_gate_context_is_each_set_projected_and_normalised():
    gate, stacks = gate_over([(2, 2), (1, 3), (2, 2)], num_experts=2, num_readers=1, width=5)
    torch.nn.init.normal_(gate.scores.weight)
    projections = gate.context.projections
    weights = [*projections[0][0].weight, projections[1][0].weight]
    sources = [*stacks[0].flatten(-2), stacks[1][0].flatten(-2)]
    parts = [x @ w.T for x, w in zip(sources, weights, strict=True)]
    context = torch.cat([torch.nn.functional.layer_norm(part, (5,)) for part in parts], -1)
    expected = torch.softmax(context @ gate.scores.weight.T, -1)
    assert_close(gate(stacks, NOTHING)[:, 0], expected)


def test_gate_takes_its_softmax_in_float32_under_autocast():
    gate, stacks = gate_over([(1, 4), (1, 4)], num_experts=2, num_readers=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate.float()([x.float() for x in stacks], NOTHING).dtype == torch.float32


def test_task_towers_equal_looped_towers():
    torch.manual_seed(1)
    towers = TaskTowers(4, MLPSpec((6, 5), 0.0, "layer"), num_tasks=3).double()
    h = torch.randn(7, 3, 4, dtype=torch.float64)
    logits = towers(h, NOTHING)
    for t in range(3):
        one = TaskTowers(4, MLPSpec((6, 5), 0.0, "layer"), num_tasks=1).double()
        one.load_state_dict({name: value[t] for name, value in towers.state_dict().items()})
        assert_close(logits[:, t : t + 1], one(h[:, t : t + 1], NOTHING))


def test_logits_leave_autocast_in_float32():
    torch.manual_seed(1)
    tower = SharedTower(8, MLPSpec((16,), 0.0, "layer"), num_tasks=2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = tower(torch.randn(64, 8))
        hidden = tower.body(torch.randn(64, 8))
    assert (logits.dtype, hidden.dtype) == (torch.float32, torch.bfloat16)
    assert (logits.detach() != logits.detach().bfloat16().float()).any()


def test_sum_head_by_hand():
    h = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert SumHead(2, 1)(h).tolist() == [[3.0], [2.0]]
    head = SumHead(2, 2)
    assert head(h).tolist() == [[3.0, 3.0], [2.0, 2.0]]
    with torch.no_grad():
        head.weight[1] = torch.tensor([2.0, 0.5])
    assert head(h).tolist() == [[3.0, 3.0], [2.0, 5.5]]
