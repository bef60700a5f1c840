"""What the steps cost and what they lost, without a host sync per step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prismrec.config import Recipe
from prismrec.models.objectives import Objective
from prismrec.train.model import Output
from prismrec.train.process_group import Ranks
from prismrec.train.row_weights import RowWeights


class Meter:
    """Sums losses on the device and seconds on the host; reads them out every `log_every` steps.

    Args:
        recipe: for task names and cadence.
        objective: for the parts of the losses.
        ranks: losses are averaged over them.
        total_steps: the last step is always read out.
    """

    def __init__(
        self, recipe: Recipe, objective: Objective, ranks: Ranks, total_steps: int
    ) -> None:
        tasks = recipe.task_names
        parts = [f"{tasks[task]}/{part}" for task, part in objective.parts]
        self._names = ["loss", *(f"{task}/loss" for task in tasks), *parts]
        self._every = recipe.train.log_every
        self._ranks = ranks
        self._total_steps = total_steps
        self._weights = RowWeights(tasks, objective.weighted, ranks)
        self._sums = torch.zeros(len(self._names), device=ranks.device)
        self._since = self._lap_start = time.perf_counter()
        self._seconds = self._waited = 0.0
        self._rows = self._lap_rows = self._lap_steps = 0
        self.steps = 0

    def add(self, output: Output, rows: int, waited_s: float) -> None:
        """Take one step: its output, the rows of all ranks and the seconds spent on data."""
        losses = output.losses
        assert losses is not None
        self._sums += torch.cat([output.loss.reshape(1), losses.per_task, losses.parts])
        self._weights.add(losses.weights)
        self._rows += rows
        self._lap_rows += rows
        self._lap_steps += 1
        self._waited += waited_s
        self.steps += 1

    def is_due(self, step: int) -> bool:
        """Whether this is a step to read out after."""
        return step % self._every == 0 or step == self._total_steps

    def read(self) -> dict[str, float]:
        """Mean losses over all ranks since the last reading, rows per second, share of waiting.

        Of tasks whose rows are weighted also what `RowWeights` reads.

        Collective: every rank calls it at the same step.
        """
        means = self._ranks.sum(self._sums / (self._lap_steps * self._ranks.world_size))
        now = time.perf_counter()
        elapsed = max(now - self._lap_start, 1e-9)
        values = {f"train/{n}": float(v) for n, v in zip(self._names, means, strict=True)}
        values["train/examples_per_second"] = self._lap_rows / elapsed
        values["train/data_wait"] = min(1.0, self._waited / elapsed)
        values |= self._weights.read()
        self._sums.zero_()
        self._lap_start, self._lap_rows, self._lap_steps, self._waited = now, 0, 0, 0.0
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside as training time."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self._since += spent
        self._lap_start += spent

    def examples_per_second(self) -> float:
        """Rows per second over all ranks since the meter was made."""
        return self._rows / max(time.perf_counter() - self._since, 1e-9)
