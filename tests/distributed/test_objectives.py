"""Losses and batch moments on two ranks are those of one process with all the rows."""

import math

import torch
import torch.distributed as dist

from prismrec.models.batch_norm import BatchNorm
from tests.helpers.losses import global_mean_bce
from tests.helpers.ranks import run_ranks

ROWS = 6


def logit_with_loss(loss: float) -> float:
    """The logit whose cross-entropy with the label 0 is `loss`: log(1 + e^z) = loss."""
    return math.log(math.expm1(loss))


def uneven() -> dict[str, torch.Tensor]:
    """Two ranks' rows together: the second rank has few valid rows of task 0, none of task 1."""
    generator = torch.Generator().manual_seed(3)
    valid = torch.ones(2 * ROWS, 2, dtype=torch.float64)
    valid[ROWS + 1 :, 0] = 0
    valid[ROWS:, 1] = 0
    return {
        "x": torch.randn(2 * ROWS, 3, dtype=torch.float64, generator=generator),
        "labels": (torch.rand(2 * ROWS, 2, generator=generator) > 0.5).double(),
        "valid": valid,
        "weights": torch.rand(2 * ROWS, 2, dtype=torch.float64, generator=generator) + 0.1,
    }


def gradient(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    data = {name: value[rows] for name, value in uneven().items()}
    W = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    total, _ = global_mean_bce(
        data["x"] @ W, data["labels"], data["valid"], data["weights"], torch.tensor([1.0, 0.5])
    )
    total.backward()
    return total.detach(), W.grad


def normed(rows: slice) -> tuple[torch.Tensor, ...]:
    """Output, input gradient, weight gradient, running moments of stacked batch normalisation."""
    generator = torch.Generator().manual_seed(4)
    x, cotangent = torch.randn(2, 2, 2 * ROWS, 3, dtype=torch.float64, generator=generator)
    x = (5 + 2 * x[:, rows]).requires_grad_()
    norm = BatchNorm(3, copies=2).double()
    out = norm(x)
    out.backward(cotangent[:, rows])
    assert x.grad is not None
    assert norm.weight.grad is not None
    return out.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var


def on_rank() -> dict:
    rank = dist.get_rank()
    rows = slice(rank * ROWS, (rank + 1) * ROWS)
    losses = [[1.0], [2.0]] if rank == 0 else [[6.0], [0.5]]
    valid = torch.tensor([[1.0], [1.0 - rank]], dtype=torch.float64)
    logits = torch.tensor([[logit_with_loss(x) for x in row] for row in losses]).double()
    total, per_task = global_mean_bce(
        logits, torch.zeros(2, 1), valid, torch.ones(2, 1), torch.ones(1)
    )
    loss, grad = gradient(rows)
    norm = normed(rows)
    return {
        "vector": (total.item(), per_task.item()),
        "loss": loss.item(),
        "grad": grad.tolist(),
        "norm": [value.tolist() for value in norm],
    }


def test_two_ranks_equal_one_process():
    results = run_ranks(on_rank, 2)

    # Losses {1, 2} and {6}: the mean is 3, not the 3.75 of the ranks' means.
    torch.testing.assert_close(
        [r["vector"] for r in results], [(2.0, 2.0), (4.0, 4.0)], rtol=0, atol=1e-5
    )

    loss, grad = gradient(slice(None))
    assert abs(sum(r["loss"] for r in results) / 2 - loss.item()) < 1e-12
    averaged = torch.tensor([r["grad"] for r in results], dtype=torch.float64).mean(0)
    torch.testing.assert_close(averaged, grad, rtol=0, atol=1e-12)

    out, x_grad, weight_grad, mean, var = normed(slice(None))
    ranks = [[torch.tensor(v, dtype=torch.float64) for v in r["norm"]] for r in results]
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([r[0] for r in ranks], 1), out, **close)
    torch.testing.assert_close(torch.cat([r[1] for r in ranks], 1), x_grad, **close)
    torch.testing.assert_close(ranks[0][2] + ranks[1][2], weight_grad, **close)
    for rank in ranks:
        torch.testing.assert_close(rank[3], mean, **close)
        torch.testing.assert_close(rank[4], var, **close)
