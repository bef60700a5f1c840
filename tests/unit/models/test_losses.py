import pytest
import torch
import torch.nn.functional as F

from prismrec.config import UserError
from prismrec.models.objectives import (
    Objective,
    Targets,
    TaskLoss,
    binary_cross_entropy,
    task_loss,
)
from tests.helpers.losses import global_mean_bce

ONE = torch.ones(1)


def test_weighted_mean_by_hand():
    logits = torch.tensor([[0.0], [2.0], [-1.0]])
    labels = torch.tensor([[1.0], [0.0], [1.0]])
    valid = torch.tensor([[1.0], [1.0], [0.0]])
    weights = torch.tensor([[3.0], [1.0], [5.0]])
    total, per_task = global_mean_bce(logits, labels, valid, weights, ONE)
    expected = (3 * 0.6931472 + 1 * 2.1269280) / 4
    assert total.item() == pytest.approx(expected, abs=1e-6)
    assert per_task.tolist() == pytest.approx([expected], abs=1e-6)


def test_tasks_are_means_of_their_own_rows_and_weighted():
    torch.manual_seed(1)
    logits = torch.randn(6, 2, dtype=torch.float64)
    labels = (torch.rand(6, 2) > 0.5).double()
    valid = torch.ones(6, 2, dtype=torch.float64)
    valid[2:, 1] = 0
    total, per_task = global_mean_bce(
        logits, labels, valid, torch.ones(6, 2), torch.tensor([1.0, 0.25])
    )
    first = F.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
    second = F.binary_cross_entropy_with_logits(logits[:2, 1], labels[:2, 1])
    torch.testing.assert_close(per_task, torch.stack([first, second]), rtol=0, atol=1e-12)
    assert total.item() == pytest.approx((first + 0.25 * second).item(), abs=1e-12)


def test_tiny_weights_still_make_a_mean():
    logits = torch.zeros(2, 1)
    total, _ = global_mean_bce(logits, logits, logits + 1, logits + 1e-12, ONE)
    assert total.item() == pytest.approx(0.6931472, abs=1e-6)


def test_task_without_rows_is_zero_with_zero_gradient():
    logits = torch.randn(4, 2, requires_grad=True)
    labels = torch.zeros(4, 2)
    valid = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    total, per_task = global_mean_bce(logits, labels, valid, torch.ones(4, 2), torch.ones(2))
    total.backward()
    assert per_task[1] == 0
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, 0] != 0).all()


def test_a_label_outside_the_sample_space_may_be_nan():
    logits = torch.zeros(2, 1, requires_grad=True)
    labels = torch.tensor([[1.0], [float("nan")]])
    total, _ = global_mean_bce(logits, labels, torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), ONE)
    total.backward()
    assert total.item() == pytest.approx(0.6931472, abs=1e-6)
    assert logits.grad.flatten().tolist() == [-0.5, 0.0]


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.full((1000, 1), 0.5, dtype=torch.bfloat16)
    ones = torch.ones(1000, 1)
    total, per_task = global_mean_bce(logits, ones, ones, ones, ONE)
    assert (total.dtype, per_task.requires_grad) == (torch.float32, False)
    assert total.item() == pytest.approx(0.4740770, abs=1e-6)


def half_square(logits, labels):
    return (logits - labels) ** 2 / 2


def test_tasks_may_have_losses_of_their_own():
    objective = Objective([TaskLoss(), TaskLoss(), TaskLoss(half_square)], [1.0, 1.0, 2.0])
    logits = torch.tensor([[0.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    ones = torch.ones(2, 3)
    total, losses = objective(logits, Targets(labels, ones, ones))
    per_task = losses.per_task
    expected = [0.6931472, (2.1269280 + 1.3132617) / 2, (2.0 + 0.125) / 2]
    assert per_task.tolist() == pytest.approx(expected, abs=1e-6)
    assert total.item() == pytest.approx(expected[0] + expected[1] + 2 * expected[2], abs=1e-6)


def test_a_loss_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "team_losses.py").write_text(
        "def hinge(z, y):\n    return (1 - z * y).clamp(min=0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert task_loss("tasks[0].loss", "bce") == TaskLoss(binary_cross_entropy)
    assert task_loss("tasks[0].loss", "team_losses:hinge").row(torch.zeros(1), torch.ones(1)) == 1
    with pytest.raises(
        UserError, match=r"tasks\[0\].loss: 'team_losses' has no function 'hing'; did"
    ):
        task_loss("tasks[0].loss", "team_losses:hing")
