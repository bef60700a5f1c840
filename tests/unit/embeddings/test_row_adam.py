"""Adam of tables that are not fused, against PyTorch's lazy and ordinary ones and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prismrec.embeddings.row_adam import RowAdam

RATE, BETA1, BETA2, EPS = 0.1, 0.8, 0.95, 1e-3
OPTIONS = {"lr": RATE, "beta1": BETA1, "beta2": BETA2, "eps": EPS}


def _gradients(looked_up: list[list[int]]) -> list[Tensor]:
    torch.manual_seed(4)
    out = []
    for rows in looked_up:
        grad = torch.zeros(6, 4)
        grad[rows] = torch.randn(len(rows), 4)
        out.append(grad)
    return out


def _stepped(optimizer: torch.optim.Optimizer, table: nn.Parameter, grads: list[Tensor]) -> None:
    for grad in grads:
        table.grad = grad
        optimizer.step()


def test_rows_move_as_by_the_lazy_adam_of_pytorch() -> None:
    grads = _gradients([[0, 2, 5], [2], [0, 1], [5, 2, 0]])
    ours, theirs = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    _stepped(RowAdam([{"params": [ours], **OPTIONS}]), ours, grads)
    lazy = torch.optim.SparseAdam([theirs], lr=RATE, betas=(BETA1, BETA2), eps=1e-12)
    _stepped(lazy, theirs, [each.to_sparse(1) for each in grads])
    exact = RowAdam(
        [{"params": [again := nn.Parameter(torch.ones(6, 4))], **OPTIONS, "eps": 1e-12}]
    )
    _stepped(exact, again, grads)
    # its eps is divided by the correction, ours is not: they are one where eps is next to nothing
    torch.testing.assert_close(again, theirs)
    assert (ours - theirs).abs().max() > 1e-4
    assert torch.equal(ours[3:5], torch.ones(2, 4)), "rows that no step looked up"


def test_with_every_row_in_every_step_it_is_adam() -> None:
    grads = _gradients([list(range(6))] * 5)
    ours, theirs = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    _stepped(RowAdam([{"params": [ours], **OPTIONS}]), ours, grads)
    adam = torch.optim.Adam([theirs], lr=RATE, betas=(BETA1, BETA2), eps=EPS)
    _stepped(adam, theirs, grads)
    torch.testing.assert_close(ours, theirs)


def test_decay_takes_its_share_of_the_rows_that_move_and_of_no_other() -> None:
    table = nn.Parameter(torch.tensor([[2.0, -4.0], [2.0, -4.0]]))
    optimizer = RowAdam([{"params": [table], "lr": 0.5, "weight_decay": 0.1}])
    _stepped(optimizer, table, [torch.tensor([[3.0, -7.0], [0.0, 0.0]])])
    # the first step of Adam is the sign of the gradient; then 0.5 x 0.1 of the row
    expected = torch.tensor([[2 - 0.5 - 0.05 * 2, -4 + 0.5 + 0.05 * 4], [2.0, -4.0]])
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize("behind", [0, 2])
def test_moments_that_are_loaded_bring_their_number_of_steps(behind: int) -> None:
    grads = _gradients([[0, 1], [1, 2], [0, 2], [2, 5]])
    whole = nn.Parameter(torch.ones(6, 4))
    _stepped(RowAdam([{"params": [whole], **OPTIONS}]), whole, grads)
    table = nn.Parameter(torch.ones(6, 4))
    first = RowAdam([{"params": [table], **OPTIONS}])
    _stepped(first, table, grads[:2])
    second = RowAdam([{"params": [table], **OPTIONS}])
    for name, moment in first.state[table].items():
        second.state[table][name].copy_(moment)
    second.steps_done = behind
    _stepped(second, table, grads[2:])
    assert torch.equal(table, whole) is (behind == 2)


def test_a_table_without_a_gradient_stays() -> None:
    table = nn.Parameter(torch.ones(2, 4))
    RowAdam([{"params": [table]}]).step()
    assert torch.equal(table.detach(), torch.ones(2, 4))
