"""Heads that know how sure a model is: numbers written out by hand, and what must hold for any rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.models.exploration import (
    LastLayerLaplace,
    expected_probability,
    probit_mean,
    thompson,
    upper_bound,
)
from prismrec.models.exploration.gaussian import GaussianHead, median_distance
from tests.helpers.ranks import run_ranks

PHI = torch.tensor([[1.0, 0], [1, 1], [0, 1]], dtype=torch.float64)
P = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
ONE = torch.ones(1, 2, dtype=torch.float64)


def laplace() -> LastLayerLaplace:
    head = LastLayerLaplace(2, has_bias=False)
    head.update(PHI, P)
    return head


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_precision_and_variance_of_the_last_layer() -> None:
    head = laplace()
    assert head.precision.flatten().tolist() == pytest.approx([1.25, 0.16, 0.16, 1.41])
    assert head.variance(ONE).item() == pytest.approx(1.3472278197, abs=1e-10)


def test_scores() -> None:
    m, v = number(-2), number(1.3472278197)
    assert upper_bound(m, v, 0).item() == pytest.approx(0.1192029220, abs=1e-10)
    assert upper_bound(m, v, 1).item() == pytest.approx(0.3016825347, abs=1e-9)
    assert probit_mean(m, v).item() == pytest.approx(0.1655632473, abs=1e-9)
    assert expected_probability(m, v).item() == pytest.approx(0.1661554004, abs=1e-6)


@given(st.floats(-6, 6), st.floats(0, 4))
@settings(max_examples=30, deadline=None)
def test_the_probit_mean_is_near_the_expected_probability(m: float, v: float) -> None:
    bound = 5e-3 if v <= 1 else 1.1e-2
    assert (
        abs(probit_mean(number(m), number(v)) - expected_probability(number(m), number(v))) < bound
    )


@given(st.integers(0, 2**31), st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_rows_make_the_last_layer_no_less_sure(seed: int, rows: int) -> None:
    random = torch.Generator().manual_seed(seed)
    phi, asked = (torch.randn(n, 5, generator=random) for n in (rows, 8))
    head = LastLayerLaplace(5, prior=0.3)
    before = head.variance(asked)
    head.update(phi, torch.rand(rows, generator=random))
    after = head.variance(asked)
    assert (after >= 0).all()
    assert (after <= before + 1e-9).all()


def test_what_was_known_fades_to_the_prior() -> None:
    head = laplace()
    none = torch.zeros(0, 2, dtype=torch.float64)
    head.update(none, none[:, 0], keep=0.25)
    assert head.precision.flatten().tolist() == pytest.approx([1.0625, 0.04, 0.04, 1.1025])


def test_weights_of_rows_and_a_bias() -> None:
    head = LastLayerLaplace(1, prior=2.0)
    head.update(torch.tensor([[3.0]]), torch.tensor([0.5]), weights=torch.tensor([4.0]))
    assert head.precision.tolist() == [[2 + 9, 3], [3, 2 + 1]]


def test_draws_have_the_variance_and_move_alike_rows_alike() -> None:
    head, random = laplace(), torch.Generator().manual_seed(0)
    rows = torch.cat([ONE, ONE, PHI[:1]])
    assert head.draw(rows, random)[:2].diff().item() == 0
    noise = torch.randn(20_000, 2, dtype=torch.float64, generator=random)
    place = torch.arange(20_000)
    draws = torch.stack([head.move(row.expand(20_000, -1), noise, place) for row in rows], 1)
    expected = head.variance(rows)
    assert draws.var(0).tolist() == pytest.approx(expected.tolist(), rel=0.05)
    assert draws.mean(0).abs().max() < 0.03


def test_the_layer_gets_no_gradient() -> None:
    phi = PHI.clone().requires_grad_()
    head = LastLayerLaplace(2)
    head.update(phi, P)
    assert not head.variance(phi).requires_grad


def _of_rank() -> list[float]:
    import torch.distributed as dist

    rows = slice(0, 1) if dist.get_rank() == 0 else slice(1, 3)
    head = LastLayerLaplace(2, has_bias=False)
    head.update(PHI[rows], P[rows])
    return [float(each) for each in head.precision.flatten()]


@pytest.mark.slow
def test_ranks_know_the_rows_of_all() -> None:
    for found in run_ranks(_of_rank, 2):
        assert found == pytest.approx([1.25, 0.16, 0.16, 1.41])


def process() -> GaussianHead:
    """Z = (0, 0), (1, 0); kernel exp(-d^2 / 2); q(u) = N((1, -1), 0.1 I)."""
    inducing = torch.tensor([[0.0, 0], [1, 0]], dtype=torch.float64)
    head = GaussianHead(inducing).double()
    head.kernel.base_kernel.lengthscale = 1.0
    kernel = torch.tensor([[1, math.exp(-0.5)], [math.exp(-0.5), 1]], dtype=torch.float64)
    factor = torch.linalg.cholesky(kernel + 1e-6 * torch.eye(2, dtype=torch.float64))
    q = head.variational_strategy._variational_distribution
    with torch.no_grad():  # whitened: u = L w
        q.variational_mean.copy_(
            torch.linalg.solve(factor, torch.tensor([1.0, -1.0], dtype=torch.float64))
        )
        inverse = torch.linalg.inv(factor)
        q.chol_variational_covar.copy_(torch.linalg.cholesky(0.1 * inverse @ inverse.mT))
        head.variational_strategy.variational_params_initialized.fill_(1)
    return head


def test_the_process_against_numbers_by_hand() -> None:
    head = process()
    mean, variance = head.predict(torch.tensor([[0.5, 0], [5, 5]], dtype=torch.float64))
    assert mean.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert variance.tolist() == pytest.approx([0.0908070471, 1.0], abs=1e-5)
    divergence = head.variational_strategy.kl_divergence().item()
    assert divergence == pytest.approx(3.7729340535, abs=1e-4)


def test_the_loss_of_the_process_is_minus_its_bound() -> None:
    head = process()
    phi = torch.tensor([[0.5, 0.0], [0.2, 0.3]], dtype=torch.float64)
    labels = torch.tensor([1.0, 0.0], dtype=torch.float64)
    mean, variance = head.predict(phi)
    at = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    normal = torch.distributions.Normal(mean[:, None], variance.sqrt()[:, None])
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    inside = torch.nn.functional.logsigmoid(signs * at) * normal.log_prob(at).exp()
    expected = -torch.trapezoid(inside, at).mean() + 3.7729340535 / 50
    assert head.loss(phi, labels, 50).item() == pytest.approx(expected.item(), abs=1e-4)


def test_draws_of_the_process() -> None:
    head, random = process(), torch.Generator().manual_seed(0)
    rows = torch.tensor([[0.5, 0.0], [0.5, 0.0], [5, 5]], dtype=torch.float64)
    draws = head.draw(rows.expand(4000, -1, -1), random)
    assert (draws[:, 0] - draws[:, 1]).abs().max() < 0.1
    assert draws.var(0).tolist() == pytest.approx([0.0908, 0.0908, 1.0], rel=0.1)


def test_the_process_learns_and_stays_unsure_far_away() -> None:
    torch.manual_seed(0)
    phi = torch.randn(200, 2)
    labels = (phi[:, 0] > 0).float()
    head = GaussianHead(phi[:12].clone(), scale=3.0)
    adam = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(50):
        adam.zero_grad()
        head.loss(phi, labels, len(phi)).backward()  # type: ignore[no-untyped-call]
        adam.step()
    mean, variance = head.predict(torch.tensor([[1.5, 0.0], [-1.5, 0.0], [60.0, 60.0]]))
    assert mean[0] > 1
    assert mean[1] < -1
    assert variance[2] > 1.5 * variance[:2].max()
    assert variance[2].item() == pytest.approx(head.kernel.outputscale.item(), rel=0.05)


def test_thompson_draws_around_the_mean() -> None:
    m = torch.zeros(50_000, dtype=torch.float64)
    drawn = thompson(m, m + 4.0, torch.Generator().manual_seed(1))
    assert torch.logit(drawn).std().item() == pytest.approx(2, rel=0.02)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_first_scale_of_the_kernel() -> None:
    rows = torch.tensor([[0.0, 0], [3, 4], [0, 0]])
    assert median_distance(rows) == 5
    assert median_distance(rows[:1].repeat(3, 1)) == 1


def test_a_prior_is_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0, got 0"):
        LastLayerLaplace(2, prior=0)
