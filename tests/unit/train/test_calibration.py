"""Maps of logits: what they do, and fits against independent ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.config import ConfigError
from prismrec.models.calibration import IDENTITY, LogitMap, mapped
from prismrec.train.calibration import (
    Cells,
    LogitSums,
    fit_map,
    isotonic,
    platt,
    read_maps,
    temperature,
    write_maps,
)
from prismrec.train.metrics.functions import auc, log_loss, pcoc, sigmoid
from prismrec.train.process_group import Ranks
from tests.helpers.runs import make_recipe

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
METHODS = ("isotonic", "platt", "temperature")


def cells_of(z: Tensor, y: Tensor, w: Tensor | None = None, bins: int = 10_000) -> Cells:
    sums = LogitSums(1, bins)
    w = torch.ones_like(z) if w is None else w
    sums.add(z.unsqueeze(1), y.unsqueeze(1), w.unsqueeze(1))
    return sums.cells(ALONE)[0]


def skewed(rows: int, slope: float = 0.5, offset: float = -1.0) -> tuple[Tensor, Tensor]:
    """Logits that say too much and too high: the truth is `slope * z + offset`."""
    generator = torch.Generator().manual_seed(7)
    z = 2 * torch.randn(rows, generator=generator, dtype=torch.float64)
    p = torch.sigmoid(slope * z + offset)
    return z, (torch.rand(rows, generator=generator, dtype=torch.float64) < p).double()


def test_a_map_by_hand() -> None:
    rises = LogitMap((-1.0, 0.0, 2.0), (-3.0, 0.0, 1.0), 2.0, 0.25)
    z = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 6.0])
    assert rises(z).tolist() == [-5.0, -3.0, -1.5, 0.0, 0.5, 1.0, 2.0]
    assert LogitMap.from_json(rises.to_json()) == rises
    assert LogitMap.line(0.5, 1.0)(z).tolist() == (0.5 * z + 1).tolist()
    both = torch.stack([z, z], 1)
    assert mapped((rises, IDENTITY), both).tolist() == torch.stack([rises(z), z], 1).tolist()
    assert mapped((), both) is both


@pytest.mark.parametrize(
    ("x", "y", "slope"),
    [
        ((0.0, 1.0), (1.0, 1.0), 1.0),
        ((1.0, 1.0), (0.0, 1.0), 1.0),
        ((0.0,), (0.0,), 0.0),
        ((), (), 1.0),
    ],
)
def test_a_map_that_does_not_rise(x: tuple, y: tuple, slope: float) -> None:
    with pytest.raises(ValueError, match="a map of logits must rise"):
        LogitMap(x, y, slope, 1.0)


def test_pools_by_hand() -> None:
    """Rates 0, 1/2, 0, 1/4, 1: the middle two become 1/5... and the ends lose their infinities."""
    cells = Cells(
        np.array([2.0, 2.0, 1.0, 4.0, 3.0]),
        np.array([0.0, 1.0, 0.0, 1.0, 3.0]),
        np.array([-4.0, -2.0, -1.0, 0.0, 2.0]),
    )
    # 1/2 over 0: 1/3 of three rows at -5/3; over 1/4: 2/7 of seven at -5/7. Then 0 of two rows
    # joins them (2/9 of nine at -13/9), and so does 1 of three rows: one pool of 5/12 at -7/12.
    found = isotonic(cells)
    assert found.x == pytest.approx((-7 / 12,))
    assert found.y == pytest.approx((math.log(5 / 7),))
    # With a negative more at the top the last pool stands by itself.
    cells.positives[4] = 2
    found = isotonic(cells)
    assert found.x == pytest.approx((-13 / 9, 2.0))
    assert found.y == pytest.approx((math.log(2 / 7), math.log(2.0)))
    assert (found.low_slope, found.high_slope) == (1.0, 1.0)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 12))
def test_pools_are_those_of_the_formula(seed: int, count: int) -> None:
    """The isotonic rate of a cell is max over a <= i of min over b >= i of the mean of a..b."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(2, 9, count).astype(float)
    positives = np.array([rng.integers(1, w) for w in weight], dtype=float)
    cells = Cells(weight, positives, np.arange(count, dtype=float))
    expected = [
        max(
            min(positives[a : b + 1].sum() / weight[a : b + 1].sum() for b in range(i, count))
            for a in range(i + 1)
        )
        for i in range(count)
    ]
    found = isotonic(cells)
    rates = 1 / (1 + np.exp(-np.array(found.y)))
    assert sorted(set(np.round(expected, 9))) == pytest.approx(sorted(rates), abs=1e-8)
    for x, rate in zip(found.x, rates, strict=True):
        inside = np.isclose(expected, rate)
        mean = (weight * cells.logit)[inside].sum() / weight[inside].sum()
        assert x == pytest.approx(mean)


def test_lines_are_those_of_torch() -> None:
    z, y = skewed(4000)
    w = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for fit, free_offset in ((platt, True), (temperature, False)):
        line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([line], max_iter=100, tolerance_grad=1e-10)

        def closure(line=line, optimizer=optimizer, free_offset=free_offset) -> Tensor:
            optimizer.zero_grad()
            offset = line[1] if free_offset else 0.0
            loss = (
                w * F.binary_cross_entropy_with_logits(line[0] * z + offset, y, reduction="none")
            ).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        found = fit(cells_of(z, y, w))
        assert found.low_slope == found.high_slope == pytest.approx(line[0].item(), abs=2e-4)
        assert found.y[0] == pytest.approx(line[1].item() if free_offset else 0.0, abs=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_fitted_maps_put_probabilities_right_and_keep_the_order(method: str) -> None:
    z, y = skewed(20_000, offset=0.0 if method == "temperature" else -1.0)
    half = slice(0, 10_000)
    found = fit_map(method, cells_of(z[half], y[half]))
    after, before, labels = found(z[10_000:]), z[10_000:], y[10_000:].numpy()
    assert auc(after.numpy(), labels) == auc(before.numpy(), labels)
    assert log_loss(after.numpy(), labels) < log_loss(before.numpy(), labels) - 0.02
    assert abs(pcoc(sigmoid(after.numpy()), labels) - 1) < 0.06
    if method != "isotonic":
        assert found.low_slope == pytest.approx(0.5, abs=0.05)


def test_rows_may_be_added_in_parts_and_others_do_not_count() -> None:
    z, y = skewed(500)
    whole, parts = LogitSums(2, 1000), LogitSums(2, 1000)
    both, labels = torch.stack([z, -z], 1), torch.stack([y, 1 - y], 1)
    ones = torch.ones(500, 2)
    ones[100:200, 1] = 0
    whole.add(both, labels, ones)
    for part in (slice(0, 120), slice(120, 500)):
        parts.add(both[part], labels[part], ones[part])
    for a, b in zip(whole.cells(ALONE), parts.cells(ALONE), strict=True):
        for name in ("weight", "positives", "logit"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-12)
    kept = torch.cat([z[:100], z[200:]])
    alone = cells_of(-kept, torch.cat([1 - y[:100], 1 - y[200:]]), bins=1000)
    np.testing.assert_allclose(whole.cells(ALONE)[1].positives, alone.positives)
    assert whole.cells(ALONE)[0].weight.sum() == 500
    far = cells_of(torch.tensor([-90.0, 90.0]), torch.tensor([0.0, 1.0]))
    assert far.logit.tolist() == [-90.0, 90.0]


def test_rows_of_one_label_fit_no_map() -> None:
    with pytest.raises(ValueError, match="rows of both labels"):
        fit_map("platt", cells_of(torch.zeros(3), torch.ones(3)))


def test_rows_that_are_told_apart_fit_the_steepest_line() -> None:
    cells = cells_of(torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert platt(cells).low_slope == pytest.approx(100, rel=1e-6)
    wrong = cells_of(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert temperature(wrong).low_slope == pytest.approx(0.01, rel=1e-6)
    assert isotonic(wrong).y == (0.0,)


def test_maps_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logit_maps.json"
    assert read_maps(path, ["a"]) == []
    maps = [LogitMap((0.1, 0.3), (-1.0, 2.0), 1.0, 1.0), IDENTITY]
    write_maps(path, ["a", "b"], maps)
    assert read_maps(path, ["b", "a"]) == maps[::-1]


def test_a_calibration_needs_rows() -> None:
    splits = "data.splits={train=['fold == 0']}"
    with pytest.raises(ConfigError, match=r"data\.splits\.valid: \[calibration\] is fitted on"):
        make_recipe(Path("nowhere"), splits, "calibration.method='platt'")
    with pytest.raises(ConfigError, match=r"calibration\.method: must be one of 'isotonic'"):
        make_recipe(Path("nowhere"), "calibration.method='plat'")
