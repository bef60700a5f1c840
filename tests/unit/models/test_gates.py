import math

import torch

from prismrec.models.gates import SoftmaxGate, mix
from prismrec.models.layers import MLPSpec
from prismrec.models.towers import SharedTower, SumHead, TaskTowers
from tests.unit.models.vectors import assert_close


def test_gate_arithmetic_by_hand():
    gates = torch.softmax(torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64), -1)
    assert_close(gates, [[[0.25, 0.75]]])
    experts = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64)
    assert_close(mix(experts, gates), [[[0.25, 1.5]]])


def test_gate_starts_at_the_mean():
    torch.manual_seed(1)
    gate = SoftmaxGate([(None, 6), (2, 4)], num_experts=3, num_tasks=2)
    gates = gate([torch.randn(5, 6), torch.randn(2, 5, 4)])
    assert_close(gates, torch.full((5, 2, 3), 1 / 3), 1e-7)


def test_gate_is_a_distribution_per_task():
    torch.manual_seed(1)
    gate = SoftmaxGate([(2, 4)], num_experts=2, num_tasks=3)
    torch.nn.init.normal_(gate.scores.weight)
    gates = gate([torch.randn(2, 5, 4)])
    assert_close(gates.sum(-1), torch.ones(5, 3), 1e-6)
    assert (gates[:, 0] - gates[:, 1]).abs().max() > 1e-3
    assert (gates[0] - gates[1]).abs().max() > 1e-3


def test_gate_context_is_each_set_projected_and_normalised():
    torch.manual_seed(1)
    gate = SoftmaxGate([(2, 4), (None, 3)], num_experts=2, num_tasks=1, context_dim=5).double()
    torch.nn.init.normal_(gate.scores.weight)
    pair = torch.randn(2, 6, 4, dtype=torch.float64)
    single = torch.randn(6, 3, dtype=torch.float64)
    weights = [*gate.projections[0][0].weight, gate.projections[1][0].weight]
    parts = [x @ w.T for x, w in zip([*pair, single], weights, strict=True)]
    context = torch.cat([torch.nn.functional.layer_norm(part, (5,)) for part in parts], -1)
    expected = torch.softmax(context @ gate.scores.weight.T, -1)
    assert_close(gate([pair, single])[:, 0], expected)


def test_gate_takes_its_softmax_in_float32_under_autocast():
    gate = SoftmaxGate([(2, 4)], num_experts=2, num_tasks=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate([torch.randn(2, 5, 4)]).dtype == torch.float32


def test_task_towers_equal_looped_towers():
    torch.manual_seed(1)
    towers = TaskTowers(4, MLPSpec((6, 5), 0.0, "layer"), num_tasks=3).double()
    h = torch.randn(7, 3, 4, dtype=torch.float64)
    logits = towers(h)
    for t in range(3):
        one = TaskTowers(4, MLPSpec((6, 5), 0.0, "layer"), num_tasks=1).double()
        one.load_state_dict({name: value[t] for name, value in towers.state_dict().items()})
        assert_close(logits[:, t : t + 1], one(h[:, t : t + 1]))


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
