"""How hard losses push: vectors of the logits, and field vectors held to autograd row by row."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prismrec.analysis import gradients
from prismrec.analysis.gradients import (
    CROSS_ENTROPY,
    EDGES,
    NamedLoss,
    column_gradients,
    losses_of,
    measure_pushes,
    targets_of,
)
from prismrec.models.objectives import Objective, TaskLoss, build_decoder
from prismrec.models.objectives.decoder import Decoder
from prismrec.models.objectives.losses import RankNet
from tests.unit.analysis.subjects import drawn_labels, make_subject, quiet
from tests.unit.models.vectors import assert_close
from tests.unit.serving.world import random_raw, recipe

Z = torch.tensor([[-2, -1, -4, -3, -2.5]]).t()
Y = torch.tensor([[1.0, 1, 0, 0, 0]]).t()
MODEL: dict[str, Any] = {
    "model": {"name": "ame", "hidden": [4], "tower": [3]},
    "embedding": {
        "sets": [
            {"name": "one", "dim": 4, "features": ["item", "tags"]},
            {"name": "wide", "dim": 8},
        ]
    },
}
BCE = [-0.1761594156, -0.1462117157, 0.0035972420, 0.0094851746, 0.0151716360]
RANKNET = [-0.1276141687, -0.0581757198, 0.0277714659, 0.0646907239, 0.0933276988]


def _one(loss: TaskLoss) -> NamedLoss:
    return NamedLoss("one", Objective([loss], [1.0]))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (TaskLoss(), BCE),
        (TaskLoss(of_batch=RankNet(), alpha=0.0), RANKNET),
        (
            TaskLoss(of_batch=RankNet(), alpha=0.5),
            [(a + b) / 2 for a, b in zip(BCE, RANKNET, strict=True)],
        ),
    ],
)
def test_gradients_of_logits_times_the_rows(loss: TaskLoss, expected: list[float]) -> None:
    columns, logits = column_gradients(_one(loss), Z, Y, Decoder([False]))
    assert torch.equal(columns, logits)
    assert_close(logits.squeeze(1), [5 * each for each in expected], 1e-6)


def test_a_cross_entropy_pushes_a_negative_by_its_probability() -> None:
    labels = torch.cat([Y, torch.tensor([[math.nan]])])
    logits = torch.cat([Z, torch.tensor([[3.0]])])
    _, pushes = column_gradients(_one(TaskLoss()), logits, labels, Decoder([False]))
    p = torch.sigmoid(logits)
    torch.testing.assert_close(pushes[2:5], p[2:5])
    torch.testing.assert_close(pushes[:2], p[:2] - 1)
    assert float(pushes[5]) == 0.0


def test_pairs_push_negatives_harder_where_positives_are_unlikely() -> None:
    """sigma(z_j - z_i) > sigma(z_j) where z_i < 0: on every negative, and more in all."""
    generator = torch.Generator().manual_seed(0)
    z = -2 - torch.rand(400, 1, generator=generator)
    y = (torch.rand(400, 1, generator=generator) < 0.03).float()
    negatives = y[:, 0] < 0.5
    _, alone = column_gradients(_one(TaskLoss()), z, y, Decoder([False]))
    loss = TaskLoss(of_batch=RankNet(), alpha=0.5)
    _, beside = column_gradients(_one(loss), z, y, Decoder([False]))
    assert bool((beside[negatives] > alone[negatives]).all())


def test_the_losses_that_are_compared() -> None:
    plain, missing = losses_of(recipe())
    assert [each.name for each in plain] == [CROSS_ENTROPY, "0.9 cross-entropy + 0.1 RankNet"]
    assert missing == []
    assert [each.is_own for each in plain] == [True, False]
    tasks: list[dict[str, Any]] = [
        {"name": "click", "label": "clicked", "loss": {"name": "bce_ranknet", "alpha": 0.7}},
        {"name": "buy", "label": "bought", "loss": {"name": "focal"}, "pos_weight": 2.0},
    ]
    mixed, _ = losses_of(recipe(tasks=tasks))
    assert [each.name for each in mixed] == [
        CROSS_ENTROPY,
        "0.7 cross-entropy + 0.3 RankNet",
        "its own loss",
    ]
    assert [each.is_own for each in mixed] == [False, False, True]
    z, y = torch.cat([Z, Z], 1), torch.cat([Y, Y], 1)
    own, _ = mixed[2].objective(z, targets_of(y))
    pairs, _ = mixed[1].objective(z, targets_of(y))
    assert float(own.detach()) != pytest.approx(float(pairs.detach()))
    tasks[0]["loss"]["group"] = True
    grouped, missing = losses_of(recipe(tasks=tasks))
    assert len(grouped) == 2
    assert "a group" in missing[0]


def test_pushes_by_probability(tmp_path: Path) -> None:
    columns, labels = random_raw(90), drawn_labels(90)
    labels[3:30:4, 1] = torch.nan
    subject = make_subject(tmp_path, columns, labels, batch=90, **MODEL)
    with torch.no_grad():
        logits = torch.cat([subject.model(each.inputs)[0] for each in subject.samples()])
    p = torch.sigmoid(logits)
    found = measure_pushes(subject, quiet).logits
    assert len(found) == 2 * 2 * 2
    for each in found[:4]:
        assert each.loss == CROSS_ENTROPY
        t, positive = subject.recipe.task_names.index(each.task), each.label == "positives"
        chosen = labels[:, t] == float(positive)
        expected = (1 - p if positive else p)[chosen, t].double()
        assert each.rows == int(chosen.sum()) == int(each.bin_rows.sum())
        assert each.mean == pytest.approx(float(expected.mean()), rel=1e-5)
        last = int(each.bin_rows.nonzero().max())
        inside = p[chosen, t] >= EDGES[last - 1]
        if last < len(EDGES):
            inside &= p[chosen, t] < EDGES[last]
        assert int(each.bin_rows[last]) == int(inside.sum())
        assert float(each.by_bin[last]) == pytest.approx(float(expected[inside].mean()), rel=1e-5)


def test_pushes_do_not_depend_on_the_size_of_batches(tmp_path: Path) -> None:
    columns, labels = random_raw(96), drawn_labels(96)
    small = measure_pushes(make_subject(tmp_path / "a", columns, labels, 24, **MODEL), quiet)
    large = measure_pushes(make_subject(tmp_path / "b", columns, labels, 96, **MODEL), quiet)
    for a, b in zip(small.logits[:4], large.logits[:4], strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-5)
    for one, other in zip(small.fields[:8], large.fields[:8], strict=True):
        assert one.by_field == pytest.approx(other.by_field, rel=1e-4)


def test_gradients_of_field_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, labels = random_raw(20), drawn_labels(20)
    monkeypatch.setattr(gradients, "FIELD_ROWS", 16)
    subject = make_subject(tmp_path, columns, labels, batch=16, **MODEL)
    found = measure_pushes(subject, quiet).fields
    assert not any(each.grad is not None for each in subject.model.parameters())
    sample = next(subject.samples())
    X = [each.clone().requires_grad_() for each in sample.inputs.sets]
    logits, _ = subject.model(replace(sample.inputs, sets=X))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 1], sample.labels[:, 1], reduction="sum"
    )
    grads = torch.autograd.grad(loss, X)
    chosen = sample.labels[:, 1] == 0
    for at, (name, fields) in enumerate(
        [("one", ("item", "tags")), ("wide", ("user_id", "item", "hist", "tags"))]
    ):
        (each,) = [
            each
            for each in found
            if (each.loss, each.task, each.label, each.set_name)
            == (CROSS_ENTROPY, "buy", "negatives", name)
        ]
        expected = grads[at][chosen].norm(dim=-1).mean(0).tolist()
        assert tuple(each.by_field) == fields
        assert list(each.by_field.values()) == pytest.approx(expected, rel=1e-5)


def test_a_task_with_a_level_moves_both_its_columns(tmp_path: Path) -> None:
    tasks = [
        {"name": "click", "label": "clicked"},
        {"name": "buy", "label": "bought", "loss": {"name": "jrc"}},
    ]
    subject = make_subject(tmp_path, tasks=tasks, **MODEL)
    losses, _ = losses_of(subject.recipe)
    sample = next(subject.samples())
    with torch.no_grad():
        columns, _ = subject.model(sample.inputs)
    of_columns, of_logits = column_gradients(
        losses[0], columns, sample.labels, build_decoder(subject.recipe)
    )
    assert of_columns.shape[1] == 3
    torch.testing.assert_close(of_columns[:, :2], of_logits)
    torch.testing.assert_close(of_columns[:, 2], -of_logits[:, 1])
    assert [each.name for each in losses][-1] == "its own loss"
    assert all(each.mean > 0 for each in measure_pushes(subject, quiet).logits)
