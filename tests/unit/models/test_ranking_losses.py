"""Ranking losses against vectors written out by hand and against the plain formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.models.objectives import ranking
from prismrec.models.objectives.ranking import Rows, list_loss, pair_loss, rcr_loss
from tests.unit.models.vectors import assert_close

Z = torch.tensor([-2, -1, -4, -3, -2.5], dtype=torch.float64)
Y = torch.tensor([1, 1, 0, 0, 0], dtype=torch.float64)


def _rows(z: Tensor = Z, y: Tensor = Y, w: Tensor | None = None, g: Tensor | None = None) -> Rows:
    return Rows(z.clone().requires_grad_(), y, torch.ones_like(z) if w is None else w, g)


def test_pairs() -> None:
    rows = _rows()
    loss = pair_loss(rows)
    loss.backward()
    assert loss.item() == pytest.approx(0.2151992206, abs=2e-10)
    expected = [-0.1276141687, -0.0581757198, 0.0277714659, 0.0646907239, 0.0933276988]
    assert_close(rows.logits.grad, expected, 1e-10)
    cross_entropy = float(F.binary_cross_entropy_with_logits(Z, Y))
    assert cross_entropy == pytest.approx(0.7171633425, abs=2e-10)
    for alpha, combined in ((0.5, 0.4661812815), (0.9, 0.6669669303)):
        found = alpha * cross_entropy + (1 - alpha) * loss.item()
        assert found == pytest.approx(combined, abs=2e-10)


def test_pairs_with_weights() -> None:
    w = torch.tensor([1, 0.5, 1, 2, 1], dtype=torch.float64)
    assert pair_loss(_rows(w=w)).item() == pytest.approx(0.2465761160, abs=2e-10)
    unweighted = pair_loss(_rows(w=w), is_weighted=False)
    assert float(unweighted) == pytest.approx(0.2151992206, abs=2e-10)


def test_lists() -> None:
    assert float(list_loss(_rows())) == pytest.approx(1.0744379396, abs=2e-10)
    assert float(rcr_loss(_rows())) == pytest.approx(1.0841114505, abs=2e-10)


def test_pairs_within_groups() -> None:
    z = torch.tensor([1, 0.5, 0.2, 0.8, 0.3], dtype=torch.float64)
    y = torch.tensor([1, 0, 0, 1, 0], dtype=torch.float64)
    g = torch.tensor([0, 0, 0, 1, 1])
    assert pair_loss(_rows(z, y)).item() == pytest.approx(0.4523806465, abs=2e-10)
    assert pair_loss(_rows(z, y, g=g)).item() == pytest.approx(0.4397515447, abs=2e-10)
    by_group = pair_loss(_rows(z, y, g=g), "group_mean")
    assert float(by_group) == pytest.approx(0.4483329046, abs=2e-10)


def _plain(rows: Rows, z: Tensor, reduction: str) -> Tensor:
    """Every pair in a loop."""
    groups = torch.zeros_like(rows.labels) if rows.groups is None else rows.groups
    sums: dict[float, list[Tensor]] = {}
    for i in range(len(z)):
        for j in range(len(z)):
            weight = rows.weights[i] * rows.weights[j]
            if rows.labels[i] > 0.5 > rows.labels[j] and groups[i] == groups[j] and weight > 0:
                loss = torch.log1p(torch.exp(z[j] - z[i]))
                some = sums.setdefault(float(groups[i]), [z.new_zeros(()), z.new_zeros(())])
                some[0], some[1] = some[0] + weight * loss, some[1] + weight
    if not sums:
        return z.sum() * 0
    if reduction == "pair_mean":
        return sum(s for s, _ in sums.values()) / sum(w for _, w in sums.values())
    return sum(s / w for s, w in sums.values()) / len(sums)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    groups=st.sampled_from([0, 1, 3]),
    reduction=st.sampled_from(["pair_mean", "group_mean"]),
    chunk=st.sampled_from([1, 7, 1 << 20]),
    counted=st.booleans(),
)
def test_pairs_equal_the_loop(
    seed: int, rows: int, groups: int, reduction: str, chunk: int, counted: bool
) -> None:
    """With rows picked by label first, and with all rows against all, as on a GPU."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 2, (rows,), generator=generator).double()
    w = torch.randint(0, 3, (rows,), generator=generator).double()
    g = torch.randint(0, groups, (rows,), generator=generator) if groups else None
    ours, theirs = _rows(z, y, w, g), z.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_CHUNK_PAIRS", chunk)
        if not counted:
            patch.setattr(ranking, "_sides", lambda own, every: [(slice(None), slice(None))])
        loss = pair_loss(ours, reduction)
    expected = _plain(ours, theirs, reduction if groups else "pair_mean")
    assert_close(loss, expected.detach())
    loss.backward()
    expected.backward()
    assert_close(ours.logits.grad, theirs.grad)
    assert abs(float(ours.logits.grad.sum())) < 1e-12, "a shift of all logits changes nothing"


def test_nothing_to_compare() -> None:
    for y in (torch.zeros(3), torch.ones(3)):
        for loss_of in (pair_loss, list_loss, rcr_loss):
            rows = _rows(torch.tensor([1.0, 2.0, 3.0]), y, torch.ones(3))
            loss = loss_of(rows)
            loss.backward()
            assert bool(rows.logits.grad.isfinite().all())
            if loss_of is pair_loss or not y.any():
                assert loss.item() == 0
                assert float(rows.logits.grad.abs().max()) == 0
    rows = _rows(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), torch.zeros(2))
    for loss_of in (pair_loss, list_loss, rcr_loss):
        assert float(loss_of(rows)) == 0


def test_the_loss_bounds_what_is_misranked() -> None:
    generator = torch.Generator().manual_seed(3)
    z, y = torch.randn(50, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    misranked = (z[y == 0][None, :] > z[y == 1][:, None]).float().mean()
    assert float(pair_loss(_rows(z, y.float(), torch.ones(50)))) / math.log(2) >= float(misranked)


def test_negatives_feel_pairs_where_a_cross_entropy_has_vanished() -> None:
    """A negative at -3 beside a positive at -1: 0.1192 of the pair, 0.0474 of the cross entropy."""
    rows = _rows(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 0.0]), torch.ones(2))
    pair_loss(rows).backward()
    assert float(rows.logits.grad[1]) == pytest.approx(0.1192, abs=1e-4)
    assert float(torch.sigmoid(torch.tensor(-3.0))) == pytest.approx(0.0474, abs=1e-4)


def test_two_probabilities_stay_calibrated_beside_pairs_but_not_beside_lists() -> None:
    """Two cells of probabilities .2 and .6: ten rows each, fitted to the end."""
    cells = torch.tensor([0] * 10 + [1] * 10)
    labels = torch.tensor([1.0] * 2 + [0] * 8 + [1] * 6 + [0] * 4, dtype=torch.float64)
    fitted = {}
    for name, loss_of in (("pairs", pair_loss), ("lists", list_loss), ("rcr", rcr_loss)):
        free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12)

        def closure(loss_of=loss_of, free=free, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            rows = Rows(free[cells], labels, torch.ones(20, dtype=torch.float64))
            loss = 0.5 * F.binary_cross_entropy_with_logits(free[cells], labels)
            loss = loss + 0.5 * loss_of(rows)
            loss.backward()
            return loss

        optimizer.step(closure)
        fitted[name] = torch.sigmoid(free).tolist()
    assert fitted["pairs"] == pytest.approx([0.2, 0.6], abs=1e-4)
    assert fitted["rcr"] == pytest.approx([0.2, 0.6], abs=1e-4)
    assert fitted["lists"] == pytest.approx([0.2551, 0.5449], abs=1e-4)
