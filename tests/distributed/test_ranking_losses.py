"""Ranking losses over two ranks equal those of the whole batch on one."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.ranks import run_ranks

ROWS = 12
OBJECTIVE = "an objective of every kind, by group"
CASES = (
    *("pairs", "pairs by group", "group means", "positives on one rank only", "lists", "rcr"),
    *("jrc", "jrc by group", "jrc by group without the same label", OBJECTIVE),
)


def _batch(case: str) -> tuple:
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(ROWS, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 2, (ROWS,), generator=generator).double()
    w = torch.randint(0, 3, (ROWS,), generator=generator).double()
    g = torch.randint(0, 3, (ROWS,), generator=generator)
    if case == "positives on one rank only":
        y[: ROWS // 2] = 0
    return z, y, w, g if "group" in case else None


def _loss(case: str, part: slice) -> tuple[float, torch.Tensor]:
    from prismrec.models.objectives.ranking import (
        Rows,
        generative_loss,
        list_loss,
        pair_loss,
        rcr_loss,
    )

    z, y, w, g = _batch(case)
    logits = z[part].clone().requires_grad_()
    levels = torch.sin(3 * logits) if "jrc" in case else None
    rows = Rows(logits, y[part], w[part], None if g is None else g[part], levels)
    if case == OBJECTIVE:
        loss = _objective(rows)
    elif case.startswith("jrc"):
        loss = generative_loss(rows, excludes_same_label="without" in case)
    elif case in ("lists", "rcr"):
        loss = {"lists": list_loss, "rcr": rcr_loss}[case](rows)
    else:
        loss = pair_loss(rows, "group_mean" if case == "group means" else "pair_mean")
    loss.backward()
    return loss.item(), logits.grad


def _objective(rows) -> torch.Tensor:
    """Five tasks of the same labels, their logits functions of one."""
    from prismrec.models.objectives import Objective, Targets, TaskLoss
    from prismrec.models.objectives.losses import Focal, Generative, ListNet, RankNet

    losses = [
        TaskLoss(of_batch=Generative(), alpha=0.25, is_grouped=True, has_level=True),
        TaskLoss(of_batch=RankNet("group_mean"), alpha=0.5, is_grouped=True, pos_weight=3.0),
        TaskLoss(Focal(2.0)),
        TaskLoss(of_batch=ListNet(), alpha=0.75, propensity="both"),
        TaskLoss(of_batch=Generative(True), alpha=0.0, has_level=True),
    ]
    z = torch.stack([rows.logits * k for k in (1.0, 0.5, -1.0, 2.0, 3.0)], 1)
    labels, weights = (each.unsqueeze(1).expand_as(z) for each in (rows.labels, rows.weights))
    valid = (torch.arange(5) * rows.groups.unsqueeze(1) != 4).double()
    levels = torch.stack([torch.sin(rows.logits), torch.cos(rows.logits)], 1)
    objective = Objective(losses, [1.0, 2.0, 0.5, 1.0, 1.0])
    targets = Targets(labels, valid, weights, torch.sigmoid(z.detach()), rows.groups)
    loss, _ = objective(z, targets, levels)
    return loss


def _losses() -> list[tuple[float, torch.Tensor]]:
    import torch.distributed as dist

    half = ROWS // 2
    first = dist.get_rank() * half
    return [_loss(case, slice(first, first + half)) for case in CASES]


@pytest.fixture(scope="module")
def two_ranks():
    return run_ranks(_losses, 2, timeout_s=120)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(two_ranks, case):
    value, gradient = _loss(case, slice(0, ROWS))
    ranks = [rank[CASES.index(case)] for rank in two_ranks]
    assert sum(v for v, _ in ranks) / 2 == pytest.approx(value, abs=1e-12)
    averaged = torch.cat([g for _, g in ranks]) / 2  # as gradients are averaged over ranks
    torch.testing.assert_close(averaged, gradient, atol=1e-12, rtol=0)
