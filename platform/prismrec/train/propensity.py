"""Propensities of a run: fitted when it starts, undone wherever it predicts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from prismrec.config import Recipe
from prismrec.config.data import Task
from prismrec.data.batch import Batch
from prismrec.data.lanes import Share
from prismrec.data.propensity import ExposureSums, exposure_sums
from prismrec.data.source import DataSource
from prismrec.train.process_group import Ranks


def with_propensities(recipe: Recipe, source: DataSource, ranks: Ranks) -> Recipe:
    """The recipe with the tables of the propensities that are fitted; others stay as they are.

    A table that the recipe gives is left alone. The same rows give the same table on any number of
    ranks, so a run that goes on finds the one it had.

    Collective: every rank calls it; each reads its part of the training rows once per such task.

    Raises:
        UserError: see `exposure_sums`.
    """
    tasks = tuple(_fitted(task, recipe, source, ranks) for task in recipe.tasks)
    return recipe.model_copy(update={"tasks": tasks}) if tasks != recipe.tasks else recipe


def _fitted(task: Task, recipe: Recipe, source: DataSource, ranks: Ranks) -> Task:
    section = task.propensity
    if section is None or section.estimator != "fitted" or section.expected:
        return task
    own = exposure_sums(source, recipe, section, Share(ranks.rank, ranks.world_size))
    parts = [own]
    if ranks.world_size > 1:
        parts = [own] * ranks.world_size
        dist.all_gather_object(parts, own)
    fitted = ExposureSums.of(parts).fitted(section)
    return task.model_copy(update={"propensity": fitted})


class Corrections:
    """From the logits of training to those of the world: sampling, weights and exposures undone.

    Args:
        recipe: for its tasks.
    """

    def __init__(self, recipe: Recipe) -> None:
        tasks = recipe.tasks
        self._offsets = torch.tensor([task.logit_offset for task in tasks])
        undone = [task.propensity is not None and task.propensity.undo for task in tasks]
        self._undone = torch.tensor(undone) if any(undone) else None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """The right logits (B, T), on the CPU.

        `p = q / (q + w (1 - q))` is `logit p = logit q - ln w`.

        Args:
            logits: (B, T) as the model gives them, on any device.
            batch: the rows, for their weights.
        """
        logits = logits.cpu() + self._offsets
        if self._undone is None:
            return logits
        assert batch.propensity is not None
        return logits - torch.where(self._undone, torch.log(batch.propensity.cpu()), 0)
