"""Whether losses of two tasks pull vectors the same way, against formulas and exact zeros."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prismrec.analysis.task_gradients import (
    TaskLosses,
    conflict,
    conflicts,
    task_gradients,
)
from prismrec.models import Inputs
from prismrec.models.objectives.decoder import Decoder
from prismrec.models.objectives.losses import Focal, binary_cross_entropy
from tests.unit.models.multitask_cases import CASES, built, drawn

BOTH = TaskLosses(Decoder([False, False]), [binary_cross_entropy, binary_cross_entropy])
NAN = math.nan


class Weighted(nn.Module):
    """Logit of task t: the sum of w_t times everything in the first set."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.einsum("bnd,tnd->bt", inputs.sets[0], self.weights), {}


def test_conflict_by_hand() -> None:
    first = torch.tensor([[1.0, 0], [2, 0], [0, 0], [1, 1]])
    second = torch.tensor([[0.0, 3], [-1, 0], [5, 5], [2, 2]])
    found = conflict(torch.stack([first, second])) + conflict(torch.zeros(2, 3, 2))
    # Row by row: orthogonal, opposite, no gradient of the first, the same way.
    assert int(found.rows[0, 1]) == 3
    assert found.share_against(0, 1) == pytest.approx(1 / 3)
    assert found.mean_cosine(0, 1) == pytest.approx(0)
    assert found.cosine(0, 1) == pytest.approx((-2 + 4) / math.sqrt(7 * (9 + 1 + 50 + 8)))
    assert found.cosine(0, 0) == pytest.approx(1)
    assert int(found.rows[1, 1]) == 4


def test_no_gradient_is_no_cosine() -> None:
    found = conflict(torch.stack([torch.zeros(4, 2), torch.ones(4, 2)]))
    assert not found.has_gradient(0)
    assert found.has_gradient(1)
    assert found.cosine(0, 1) is None
    assert found.share_against(0, 1) is None
    assert found.mean_cosine(0, 1) is None


def test_gradients_of_a_model_whose_formula_is_known() -> None:
    """dL/dX = (p - y) w, and nothing of a row without a label."""
    weights = torch.tensor([[[1.0, 2.0], [0.5, -1.0]], [[-1.0, 1.0], [2.0, 0.0]]])
    model = Weighted(weights)
    X = torch.tensor([[[0.1, 0.2], [0.3, -0.4]], [[-0.5, 0.3], [0.2, 0.1]], [[1.0, 0], [0, 1]]])
    labels = torch.tensor([[1.0, 0], [0, NAN], [NAN, 1]])
    inputs = Inputs([X], None, torch.zeros(3, 0))
    (found,) = task_gradients(model, inputs, labels, BOTH)
    p = torch.sigmoid(torch.einsum("bnd,tnd->bt", X, weights))
    slopes = torch.where(labels.isnan(), 0, p - labels.nan_to_num())
    expected = torch.einsum("bt,tnd->tbnd", slopes, weights)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert X.grad is None
    assert model.weights.grad is None
    (of_set,) = conflicts(model, [(inputs, labels)], BOTH, [{"u": [0], "i": [1]}])
    assert int(of_set[""].rows[0, 1]) == 1
    # On the only row with both labels the slopes have opposite signs: against w_0 . w_1 = 2, and by
    # table against 1 and 1.
    assert float(slopes[0].prod()) < 0
    assert of_set[""].share_against(0, 1) == 1
    assert of_set["u"].cosine(0, 0) == pytest.approx(1)
    products = [float(of_set[each].products[0, 1]) for each in ("", "u", "i")]
    assert products == pytest.approx([float(slopes[0].prod()) * each for each in (2, 1, 1)])


def test_batches_add_up() -> None:
    section, shapes = CASES["mmoe"]
    model, inputs = built(section, shapes).eval(), drawn(shapes, 12)
    labels = torch.randint(0, 2, (12, 2), generator=torch.Generator().manual_seed(0)).float()
    parts = [
        (replace(inputs, sets=[inputs.sets[0][rows]], dense=inputs.dense[rows]), labels[rows])
        for rows in (slice(5), slice(5, 12))
    ]
    tables = [{"x": [0, 2]}]
    (whole,) = conflicts(model, [(inputs, labels)], BOTH, tables)
    (added,) = conflicts(model, parts, BOTH, tables)
    for key in ("", "x"):
        torch.testing.assert_close(added[key].products, whole[key].products)
        torch.testing.assert_close(added[key].cosines, whole[key].cosines)
        assert added[key].rows.tolist() == whole[key].rows.tolist()


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("stem", [[True, False], [False, True], [True, True]]),
        ("stem of 2 layers", [[True, False], [False, True], [True, True]]),
        ("stem released", [[True, True], [True, True], [True, True]]),
        ("stem without stops", [[True, True], [True, True], [True, True]]),
        ("mmoe", [[True, True]]),
    ],
)
def test_which_loss_reaches_which_set(name: str, reached: list[list[bool]]) -> None:
    """Exact zeros in sets of others; `stem released` leaks, as its recipe says."""
    section, shapes = CASES[name]
    model, inputs = built(section, shapes).eval(), drawn(shapes, 20)
    labels = torch.randint(0, 2, (20, 2), generator=torch.Generator().manual_seed(0)).float()
    tables: list[dict[str, list[int]]] = [{}] * len(shapes.set_dims)
    found = conflicts(model, [(inputs, labels)], BOTH, tables)
    assert [[each[""].has_gradient(t) for t in (0, 1)] for each in found] == reached
    for each, (first, second) in zip(found, reached, strict=True):
        assert (each[""].cosine(0, 1) is None) == (not (first and second))


def test_losses_of_rows_are_those_of_the_tasks() -> None:
    """A task with a level has two columns; a focal loss another slope."""
    losses = TaskLosses(Decoder([True, False]), [binary_cross_entropy, Focal(2.0)])
    columns = torch.tensor([[1.0, 0.5, 0.25]])
    first, second = losses.sums(columns, torch.tensor([[1.0, 0.0]]))
    assert float(first) == pytest.approx(math.log1p(math.exp(-(1.0 - 0.25))))
    p = 1 / (1 + math.exp(-0.5))
    assert float(second) == pytest.approx(-(p**2) * math.log(1 - p))
