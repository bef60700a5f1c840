"""How hard the objective pushes the logits of positives and negatives, by what is predicted.

Notation: B rows of this rank, T tasks, z logits, p = sigmoid(z), L the loss of the global batch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prismrec.models.objectives.ranking import world_size
from prismrec.train.process_group import Ranks

EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Lower edges of the bins of p; the last one ends at 1."""
LABELS = ("negatives", "positives")


@dataclass(frozen=True, slots=True)
class Push:
    """Mean gradient of some rows.

    Args:
        task: name of the task.
        label: `negatives` or `positives`.
        from_p: lower edge of the bin of p, None for all of them.
        rows: how many there were since the last reading.
        mean: of |dL/dz|.
    """

    task: str
    label: str
    from_p: float | None
    rows: int
    mean: float

    @property
    def name(self) -> str:
        """What the mean is called among the metrics of training."""
        ending = "" if self.from_p is None else f"_from_{self.from_p:g}"
        return f"train/{self.task}/gradient_{self.label}{ending}"


class LogitGradients:
    """Sums of |dL/dz| since the last reading, taken in the backward pass itself.

    Source: Lin et al., "Understanding the Ranking Loss for Recommendation with Sparse User
    Feedback", KDD 2024, whose figures show these vanish for negatives under a cross-entropy. z is
    the task's logit; of a task with a level it is moved by its first column.

    Args:
        tasks: names of the T tasks.
        device: of the logits.
    """

    def __init__(self, tasks: tuple[str, ...], device: torch.device) -> None:
        self._tasks = tasks
        self._edges = torch.tensor(EDGES[1:], device=device)
        self._sums = torch.zeros(2, len(tasks) * 2 * len(EDGES), device=device)
        self._first = torch.arange(len(tasks), device=device) * 2 * len(EDGES)

    def watch(self, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Add what the backward pass of this step will bring.

        Args:
            logits: z (B, T), in the graph of the loss.
            labels: (B, T), above 1/2 for positives.
            weights: (B, T), 0 where a row does not count.
        """
        bins = torch.bucketize(torch.sigmoid(logits.detach()), self._edges, right=True)
        cells = self._first + (labels > 0.5) * len(EDGES) + bins
        counts = (weights > 0).to(self._sums.dtype)
        logits.register_hook(partial(self._add, cells.flatten(), counts.flatten()))

    def _add(self, cells: Tensor, counts: Tensor, gradient: Tensor) -> None:
        pushes = gradient.detach().abs().flatten() / world_size()  # averaged over ranks later
        self._sums[0].index_add_(0, cells, counts)
        self._sums[1].index_add_(0, cells, pushes.to(self._sums.dtype) * counts)

    def read(self, ranks: Ranks) -> list[Push]:
        """What was added on all ranks since the last reading; bins without a row are left out.

        Collective: every rank calls it.
        """
        sums = ranks.sum(self._sums.clone()).view(2, len(self._tasks), 2, len(EDGES)).double()
        self._sums.zero_()
        return list(self._pushes(sums.tolist()))

    def _pushes(self, sums: list[list[list[list[float]]]]) -> Iterator[Push]:
        for t, task in enumerate(self._tasks):
            for y, label in enumerate(LABELS):
                rows, pushes = sums[0][t][y], sums[1][t][y]
                if sum(rows):
                    yield Push(task, label, None, int(sum(rows)), sum(pushes) / sum(rows))
                for edge, n, total in zip(EDGES, rows, pushes, strict=True):
                    if n:
                        yield Push(task, label, edge, int(n), total / n)


def write_pushes(path: Path, step: int, pushes: list[Push]) -> None:
    """Add the readings after one step to a CSV file, which is begun if it is not there."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", "task", "label", "from_p", "rows", "mean"])
        for each in pushes:
            edge = "" if each.from_p is None else each.from_p
            writer.writerow([step, each.task, each.label, edge, each.rows, each.mean])


def read_pushes(path: Path) -> Iterator[tuple[int, Push]]:
    """Steps and readings in such a file."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            edge = float(row["from_p"]) if row["from_p"] else None
            rows, mean = int(row["rows"]), float(row["mean"])
            yield int(row["step"]), Push(row["task"], row["label"], edge, rows, mean)
