"""Gradients of logits by label and predicted probability, by hand and against autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prismrec.models.objectives import Objective, Targets, TaskLoss
from prismrec.models.objectives.losses import RankNet
from prismrec.train.gradients import LogitGradients, Push, read_pushes, write_pushes
from prismrec.train.process_group import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


def test_cross_entropy_pushes_negatives_by_what_it_predicts() -> None:
    gradients = LogitGradients(("click",), ALONE.device)
    p = torch.tensor([0.2, 0.04, 0.05, 0.9, 0.6])
    z = torch.logit(p).unsqueeze(1).requires_grad_()
    y = torch.tensor([[0.0], [0.0], [0.0], [1.0], [0.0]])
    valid = torch.tensor([[1.0], [1.0], [1.0], [1.0], [0.0]])
    total, losses = Objective([TaskLoss()], [1.0])(z, Targets(y, valid, torch.ones(5, 1)))
    gradients.watch(z, y, losses.weights)
    total.backward()
    found = {each.name: (each.rows, each.mean) for each in gradients.read(ALONE)}
    expected = {
        "train/click/gradient_negatives": (3, (0.2 + 0.04 + 0.05) / 12),
        "train/click/gradient_negatives_from_0.03": (2, (0.04 + 0.05) / 8),
        "train/click/gradient_negatives_from_0.1": (1, 0.2 / 4),
        "train/click/gradient_positives": (1, 0.1 / 4),
        "train/click/gradient_positives_from_0.3": (1, 0.1 / 4),
    }
    assert found.keys() == expected.keys()
    for name, (rows, mean) in expected.items():
        assert found[name] == (rows, pytest.approx(mean, rel=1e-5)), name
    assert gradients.read(ALONE) == []


def test_pairs_push_sparse_negatives_harder() -> None:
    """One positive in a hundred, all predicted at the rate: the share of pairs is what is pushed."""
    y = torch.zeros(100, 1)
    y[0] = 1
    means = {}
    for name, loss in (
        ("bce", TaskLoss()),
        ("pairs", TaskLoss(of_batch=RankNet(), alpha=0.5)),
    ):
        gradients = LogitGradients(("click",), ALONE.device)
        z = torch.full((100, 1), -4.6).requires_grad_()
        ones = torch.ones(100, 1)
        total, losses = Objective([loss], [1.0])(z, Targets(y, ones, ones))
        gradients.watch(z, y, losses.weights)
        total.backward()
        means[name] = gradients.read(ALONE)[0].mean
    p = torch.sigmoid(torch.tensor(-4.6)).item()
    assert means["bce"] == pytest.approx(p / 100, rel=1e-4)
    # Half of it, and half of one pair in 99 at even scores.
    assert means["pairs"] == pytest.approx(0.5 * p / 100 + 0.5 * 0.5 / 99, rel=1e-4)


def test_readings_are_kept(tmp_path: Path) -> None:
    pushes = [Push("a", "negatives", None, 3, 0.25), Push("a", "negatives", 0.1, 3, 0.125)]
    path = tmp_path / "gradients.csv"
    write_pushes(path, 5, pushes)
    write_pushes(path, 10, pushes[:1])
    assert list(read_pushes(path)) == [(5, pushes[0]), (5, pushes[1]), (10, pushes[0])]
