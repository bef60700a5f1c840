"""From the columns that a model gives to one logit per task.

Notation: B rows, T tasks, J of them with a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prismrec.models.objectives.delayed import without_copies


class Decoder(nn.Module):
    """A task with a level has two columns, z0 (the level) and z1; its logit is `z1 - z0`.

    A model gives (B, T + J) columns: one per task, then the levels. It belongs to the model: the
    same is done in training, evaluation and serving. Without levels it changes nothing.

    Source: Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid
    Model", KDD 2023: p = e^z1 / (e^z0 + e^z1).

    Args:
        has_level: whether each task has one.
        has_copies: whether each task was trained on rows of which positives are there twice (FNC), so that
            what is served is worked back from its logit; none if not given.
    """

    tasks: Tensor
    copied: Tensor

    def __init__(self, has_level: Sequence[bool], has_copies: Sequence[bool] = ()) -> None:
        super().__init__()
        self.num_tasks = len(has_level)
        tasks = [task for task, has in enumerate(has_level) if has]
        self.register_buffer("tasks", torch.tensor(tasks, dtype=torch.int64), persistent=False)
        self._has_copies = any(has_copies)
        self.register_buffer("copied", torch.tensor(has_copies, dtype=torch.bool), persistent=False)

    def served(self, logits: Tensor) -> Tensor:
        """From the logits (B, T) that are trained to those of the probabilities that they stand for."""
        if not self._has_copies:
            return logits
        return torch.where(self.copied, without_copies(logits), logits)

    def forward(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, T + J) to logits (B, T) and levels (B, J); None where no task has one.

        Raises:
            ValueError: there are more or fewer columns.
        """
        expected = self.num_tasks + len(self.tasks)
        if columns.shape[1] != expected:
            raise ValueError(
                f"a model of {self.num_tasks} tasks, {len(self.tasks)} of them with a level, gives "
                f"{expected} columns, got {columns.shape[1]}"
            )
        if not len(self.tasks):
            return columns, None
        columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
        first, levels = columns.split([self.num_tasks, len(self.tasks)], 1)
        return first.index_add(1, self.tasks, levels, alpha=-1), levels
