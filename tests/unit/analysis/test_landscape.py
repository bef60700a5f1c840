"""The loss around trained weights, on a grid that can be computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prismrec.analysis.gradients import losses_of, targets_of
from prismrec.analysis.landscape import Slice, as_long_as, directions, landscape
from prismrec.analysis.passes import first_rows
from prismrec.models.layers import MLP, LayerNorm
from tests.unit.analysis.subjects import make_subject, quiet

MODEL: dict[str, Any] = {
    "model": {"name": "ame", "hidden": [4], "tower": [3]},
    "embedding": {"sets": [{"name": "one", "dim": 4}, {"name": "wide", "dim": 8}]},
}


def test_rows_of_a_direction_are_as_long_as_those_of_the_weights() -> None:
    drawn = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    weight = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert torch.equal(as_long_as(drawn, weight), torch.tensor([[1.2, 1.6], [0.0, 0.0]]))


def test_biases_and_scales_stay() -> None:
    model = MLP(3, (4, 2), copies=2, norm="layer")
    first, second = directions(model, 0)
    assert set(first) == {name for name, _ in model.named_parameters()}
    for name, each in first.items():
        assert bool(each.any()) == name.startswith("linears") * name.endswith("weight")
        if each.any():
            assert not torch.equal(each, second[name])
    assert isinstance(model.norms[0], LayerNorm)
    again, _ = directions(model, 0)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_layers_of_another_scale_have_the_same_landscape() -> None:
    """Twice the weights before a ReLU and half of those behind are the same function."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False))

    def moved() -> torch.Tensor:
        first, _ = directions(model, 4)
        weights = {name: w + 0.7 * first[name] for name, w in model.named_parameters()}
        return torch.func.functional_call(model, weights, (x,)).detach()

    before = moved()
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[2].weight.div_(2)
    torch.testing.assert_close(moved(), before)


def test_a_grid_is_the_loss_of_the_moved_model(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, batch=16, **MODEL)
    losses, _ = losses_of(subject.recipe)
    before = {name: each.clone() for name, each in subject.model.named_parameters()}
    told: list[tuple[str, int]] = []
    found = landscape(
        subject, losses, Slice(points=3, span=0.5, rows=20), lambda w, at, of: told.append((w, at))
    )
    assert found.rows == 32
    assert found.offsets.tolist() == [-0.5, 0, 0.5]
    assert [at for what, at in told if what.endswith(": loss landscape")] == [1, 2, 3]
    for name, each in subject.model.named_parameters():
        assert torch.equal(each, before[name])
    samples = list(first_rows(subject, 20, "rows", lambda *_: None))
    targets = targets_of(torch.cat([each.labels for each in samples]))
    first, second = directions(subject.model, 0)
    for a, along in enumerate((-0.5, 0, 0.5)):
        with torch.no_grad():
            for name, each in subject.model.named_parameters():
                each.copy_(before[name] + along * first[name] + 0.5 * second[name])
            logits = torch.cat([subject.model(each.inputs)[0] for each in samples])
            total, _ = losses[1].objective(logits, targets)
        expected = float(total) / 2
        assert float(found.losses[losses[1].name][a, 2]) == pytest.approx(expected, rel=1e-5)
    grid = found.losses[losses[0].name]
    around = [float(grid[a, b]) for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    assert found.rise(losses[0].name) == pytest.approx(sum(around) / 8 - float(grid[1, 1]))


def test_the_trained_weights_must_be_on_the_grid(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, **MODEL)
    with pytest.raises(ValueError, match="an odd number of points, 3 or more, got 4"):
        landscape(subject, losses_of(subject.recipe)[0], Slice(points=4), quiet)
