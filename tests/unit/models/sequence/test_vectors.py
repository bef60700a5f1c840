"""Sequence modules against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from prismrec.embeddings.jagged import seg_mean_weights, seg_wsum
from prismrec.models.sequence import DARE, DIN, TIM, DARESpec, DINSpec, TemporalSpec, TIMSpec
from prismrec.models.sequence.dice import Dice
from prismrec.models.sequence.temporal import Temporal
from tests.unit.models.sequence.fixture import WIDTHS, E, P, V, filled, order
from tests.unit.models.vectors import assert_close

ONE = order([3])
A = torch.tensor([[0.4, -0.1], [0.0, 0.3], [-0.2, 0.2]], dtype=torch.double)
A_V = torch.tensor([[0.5, 0.2]], dtype=torch.double)
NO_TIME = TemporalSpec("none")


def _tim(spec: TIMSpec) -> TIM:
    module = TIM(spec, WIDTHS)
    return filled(module, {"temporal.positions": P} if spec.temporal.encoding != "none" else {})


def test_plain_sums() -> None:
    assert_close(seg_wsum(torch.ones(3), E, ONE.offsets), [[0.4, 0.4, 0, 0]], 1e-12)
    mean = seg_wsum(seg_mean_weights(ONE.offsets, 3), E, ONE.offsets)
    assert_close(mean, [[0.133333, 0.133333, 0, 0]], 1e-6)


def test_tim() -> None:
    module = _tim(TIMSpec())
    assert_close(module.logits(E, V, ONE), [-0.0675, 0.14, 0.015], 1e-9)
    out = module(E, V, ONE)
    assert_close(out[:, :4], [[0.099932, -0.021130, -0.019625, 0.013833]], 1e-6)
    assert_close(out[:, 4:], V + P[0], 1e-12)


def test_tim_without_representation_gives_the_pooled_vector() -> None:
    pooled = _tim(TIMSpec(representation=False))(E, V, ONE)[:, :4]
    assert_close(pooled, [[0.285521, 0.140867, -0.035681, 0.092221]], 1e-6)
    assert_close(pooled * (V + P[0]), _tim(TIMSpec())(E, V, ONE)[:, :4], 1e-12)


def test_tim_without_encoding() -> None:
    out = _tim(TIMSpec(NO_TIME))(E, V, ONE)
    assert_close(out[:, :4], [[0.047199, -0.023598, 0.006764, -0.000062]], 1e-6)


def test_tim_in_another_order() -> None:
    out = _tim(TIMSpec())(E[[2, 0, 1]], V, ONE)
    assert_close(out[:, :4], [[0.112772, -0.017116, -0.014099, 0.016886]], 1e-6)


def test_what_tim_has_learned_of_each_behaviour() -> None:
    """`exp(z_j) ||e_j * v||`, from the logits that the module shows."""
    module = _tim(TIMSpec())
    encoded, target = module.temporal(E, V, ONE)
    learned = module.logits(E, V, ONE).exp() * (encoded * target).norm(dim=-1)
    assert_close(learned, [0.194476, 0.250300, 0.078957], 1e-6)


def test_interval_vectors_add_up_with_those_of_positions() -> None:
    intervals = torch.arange(20, dtype=torch.double).view(5, 4) / 10
    where = order([3], torch.tensor([4, 2, 9]))
    spec = TIMSpec(TemporalSpec("both"))
    module = filled(TIM(spec, WIDTHS), {"temporal.positions": P, "temporal.intervals": intervals})
    encoded, target = module.temporal(E, V, where)
    assert_close(encoded, E + P[[3, 2, 1]] + intervals[[4, 2, 4]], 1e-12)  # 9 is beyond the last
    assert_close(target, V + P[0] + intervals[0], 1e-12)


def test_appended_vectors_have_a_scale_of_their_own() -> None:
    """The logits of the fixture cut into two halves, the second as if it were the time."""
    temporal = Temporal(TemporalSpec("position", "concat", dim=2), 2, WIDTHS).double()
    halves = torch.tensor([-0.084853, 0.190919, -0.077782])
    assert_close(temporal.dot(E, V, ONE.offsets), halves, 1e-6)
    whole = Temporal(TemporalSpec("position"), 4, WIDTHS).double()
    assert_close(whole.dot(E, V, ONE.offsets), [-0.06, 0.135, -0.055], 1e-9)


def test_appended_vectors() -> None:
    spec = TemporalSpec("position", "concat", dim=2)
    temporal = filled(Temporal(spec, 4, WIDTHS), {"positions": P[:, :2]})
    encoded, target = temporal(E, V, ONE)
    assert_close(encoded, torch.cat([E, P[[3, 2, 1], :2]], 1), 1e-12)
    assert_close(target, torch.cat([V, P[:1, :2]], 1), 1e-12)


def test_official_readout() -> None:
    """Batch moments, a projection, and the target behind them."""
    module = filled(
        TIM(TIMSpec(readout="official"), WIDTHS),
        {"temporal.positions": P, "project.weight": 2 * torch.eye(4).flip(0)},
    ).eval()
    pooled = torch.tensor([0.285521, 0.140867, -0.035681, 0.092221], dtype=torch.double)
    w = 2 * pooled.flip(0) / (1 + 1e-5) ** 0.5  # the running moments are still 0 and 1
    target = (V + P[0])[0]
    expected = torch.cat([w, target, w * target])
    assert_close(module(E, V, ONE)[0], expected, 1e-6)


def _din(pooling: str) -> DIN:
    s = torch.tensor([1.0, -1.0])
    rows, columns = torch.arange(16).unsqueeze(1), torch.arange(2)
    first = s * 0.05 * ((rows % 5) - 2) + 0.02 * columns
    values = {
        "linears.0.weight": first.T,
        "linears.0.bias": torch.tensor([0.0, 0.1]),
        "last.weight": torch.tensor([[1.5, -0.5]]),
    }
    if pooling == "sum":
        values["last.bias"] = torch.tensor([0.2])
    return filled(DIN(DINSpec((2,), pooling=pooling), WIDTHS), values)


def test_din_scores_and_sum() -> None:
    module = _din("sum")
    assert_close(module.logits(E, V, ONE), [0.621527, 0.678855, 0.607615], 1e-6)
    u = torch.tensor([[0.280057, 0.238705, 0.010074, 0.005565]], dtype=torch.double)
    out = module(E, V, ONE)
    assert_close(out[:, :4], u, 1e-6)
    assert_close(out[:, 4:8], u * V, 1e-6)
    assert out[0, 8].item() == pytest.approx(torch.tensor(4.0).log().item())


def test_din_softmax() -> None:
    out = _din("softmax")(E, V, ONE)
    assert_close(out[:, :4], [[0.137626, 0.130706, 0.001695, 0.000917]], 1e-6)


def test_dice() -> None:
    x = torch.tensor([[-1, 2], [0, 0.5], [3, -1.5]], dtype=torch.double)
    module = filled(Dice(2), {"weight": torch.tensor([0.25, 0.0])})
    expected = [[-0.454582, 1.523565], [0, 0.264515], [2.545127, -0.326651]]
    assert_close(module(x), expected, 1e-6)
    assert_close(module.running_mean, 0.01 * x.mean(0), 1e-12)
    assert_close(module.running_var, 1 + 0.01 * (x.var(0, correction=0) - 1), 1e-12)


def test_dice_learns_nothing_from_no_value() -> None:
    module = Dice(2).double()
    assert module(torch.zeros(0, 2, dtype=torch.double)).shape == (0, 2)
    assert module.running_mean.tolist() == [0, 0]
    assert module.running_var.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("keep", "interest"),
    [
        (None, [0.042411, -0.026158, -0.005770, 0.002260]),
        (3, [0.042411, -0.026158, -0.005770, 0.002260]),
        (2, [0.087456, -0.011272, -0.030300, 0.020848]),
    ],
)
def test_dare(keep: int | None, interest: list[float]) -> None:
    module = DARE(DARESpec(NO_TIME, keep), WIDTHS).double()
    assert_close(module.logits(E, V, ONE, (A, A_V)), [0.127279, 0.042426, -0.042426], 1e-6)
    out = module(E, V, ONE, (A, A_V))
    assert_close(out[:, 4:], [interest], 1e-6)
    assert_close(out[:, :4] * V, out[:, 4:], 1e-12)


def test_gradients_of_the_two_paths_of_dare_add_up_to_those_of_one_table() -> None:
    shared, behaviours, attention = (E.clone().requires_grad_() for _ in range(3))
    widths = WIDTHS.__class__(4, attention=4)
    module = DARE(DARESpec(NO_TIME), widths).double()
    module(behaviours, V, ONE, (attention, V))[:, 4:].sum().backward()
    module(shared, V, ONE, (shared, V))[:, 4:].sum().backward()
    of_attention = [
        [-0.007001, 0.004667, -0.011668, -0.002334],
        [0.013569, -0.009046, 0.022615, 0.004523],
        [-0.006568, 0.004379, -0.010947, -0.002189],
    ]
    of_representation = [
        [0.093158, -0.062106, 0.155264, 0.031053],
        [0.113216, -0.075478, 0.188694, 0.037739],
        [0.093625, -0.062417, 0.156042, 0.031208],
    ]
    assert_close(attention.grad, of_attention, 1e-6)
    assert_close(behaviours.grad, of_representation, 1e-6)
    assert_close(shared.grad, attention.grad + behaviours.grad, 1e-12)
