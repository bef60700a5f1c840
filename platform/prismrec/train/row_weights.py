"""What rows count for in training, where that is more or less than the data say.

Notation: B rows of this rank, T tasks, w weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prismrec.train.process_group import Ranks


class RowWeights:
    """Sums of the weights since the last reading.

    Args:
        tasks: names of the T tasks.
        weighted: those whose weights are of interest.
        ranks: the weights of all of them count.
    """

    def __init__(self, tasks: Sequence[str], weighted: Sequence[int], ranks: Ranks) -> None:
        self._names = [tasks[task] for task in weighted]
        self._ranks = ranks
        self._tasks = torch.tensor(weighted, dtype=torch.int64, device=ranks.device)
        self._sums = torch.zeros(3, len(weighted), dtype=torch.float64, device=ranks.device)
        self._most = torch.zeros(len(weighted), device=ranks.device)

    def add(self, weights: Tensor) -> None:
        """Take one step's weights (B, T), 0 where a row does not count."""
        if not self._names:
            return
        w = weights.index_select(1, self._tasks)
        wide = w.double()
        self._sums += torch.stack([(wide > 0).double(), wide, wide.square()]).sum(1)
        self._most = torch.maximum(self._most, w.amax(0))

    def read(self) -> dict[str, float]:
        """By task: mean, maximum, and effective rows `(sum w)^2 / sum w^2` per row that counts.

        Collective: every rank calls it.
        """
        if not self._names:
            return {}
        sums, most = self._ranks.sum(self._sums.clone()), self._ranks.max(self._most.clone())
        self._sums.zero_()
        self._most.zero_()
        values = {}
        for name, rows, total, squares, top in zip(
            self._names, *sums.tolist(), most.tolist(), strict=True
        ):
            if rows:
                values[f"train/{name}/weight_mean"] = total / rows
                values[f"train/{name}/weight_max"] = top
                values[f"train/{name}/weight_effective"] = total**2 / squares / rows
        return values
