"""Losses and gradients that are no numbers: found before they reach the tables, named, and passed over.

A step's loss is looked at between forward and backward. The tables are updated in backward, so that a step
which ends there has changed nothing. A gradient that is no number under a loss that is one shows only after
backward, when the tables have taken it: such a step cannot be passed over, only ended with or rolled back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prismrec.config import Recipe, UserError
from prismrec.data.batch import Batch
from prismrec.train.process_group import Ranks
from prismrec.train.run_files import write_whole
from prismrec.train.sharding import ShardedModel

_GOING_ON = (
    "the weights of the last checkpoint are not touched: find the cause and go on with --resume, or set "
    "train.on_nonfinite to 'skip' or 'rollback'"
)


@dataclass(frozen=True, slots=True)
class Incident:
    """A step that was not a number, and whose rows are therefore not in the weights.

    Args:
        step: its number, from 0: steps done before it.
        what: in words, with the rank.
    """

    step: int
    what: str


class RolledBack(Exception):  # noqa: N818 - a way to go on
    """The run goes on from its last checkpoint; raised on all ranks at once.

    Args:
        incident: why.
    """

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.what)
        self.incident = incident


class Sentinel:
    """Watches losses and dense gradients for values that are not finite.

    Under `stop` it costs one look at a scalar: at once on CPU, where that is free; on CUDA at `check`,
    where the loop waits for the device anyway. Under `skip` and `rollback` the ranks agree before
    every backward pass, which on CUDA waits for the forward pass.

    Args:
        recipe: for `train.on_nonfinite` and the names of columns and tasks.
        sharded: the model, whose leaf is watched.
        path: file of the run that keeps the incidents, read and written by rank 0.
    """

    def __init__(self, recipe: Recipe, sharded: ShardedModel, path: Path) -> None:
        self._recipe, self._policy = recipe, recipe.train.on_nonfinite
        self._sharded, self._ranks, self._path = sharded, sharded.ranks, path
        self.incidents = _shared(path, sharded.ranks)
        """Steps whose rows are not in the weights, those of earlier starts included."""
        self.has_dropped = False
        """Whether the step just done changed nothing."""
        self._seen: tuple[Any, Any] | None = None
        passes_over = self._policy != "stop" or bool(self.incidents)
        self._moments = sharded.leaf.ranker.moments() if passes_over else []
        self._moments_before = [each.clone() for each in self._moments]
        self._waits = self._policy == "stop" and self._ranks.device.type == "cuda"
        self._first = torch.full((), -1, dtype=torch.int64, device=self._ranks.device)
        sharded.leaf.register_forward_hook(self._look)

    @property
    def _step(self) -> int:
        return self._sharded.optimizers.steps_done

    def may_go_back(self, loss: Tensor) -> bool:
        """Whether backward may run on this loss; else the step ends here on all ranks.

        Collective under `skip` and `rollback`: every rank calls it before every backward pass.

        Raises:
            UserError: the loss is not finite and the recipe says `stop`, or has allowed enough.
            RolledBack: the loss is not finite and the recipe says `rollback`.
        """
        step, seen = self._step, self._seen
        self._seen, self.has_dropped = None, False
        if any(each.step == step for each in self.incidents):
            self._pass_over()
            return False
        is_finite = torch.isfinite(loss.detach()).all()
        if self._waits:
            self._note(is_finite)
        elif self._policy == "stop":
            if not is_finite:
                what = f"{self._describe(seen)} on rank {self._ranks.rank}"
                raise UserError(f"step {step}: {what} is not finite; {_GOING_ON}")
        elif self._ranks.agree(not is_finite):
            own = "" if is_finite else f"{self._describe(seen)} on rank {self._ranks.rank}"
            self._take(Incident(step, f"{self._ranks.first_text(own)} is not finite"))
            self._pass_over()
            return False
        for before, now in zip(self._moments_before, self._moments, strict=True):
            before.copy_(now)
        return True

    def check_gradients(self) -> None:
        """Look at the dense gradients after backward; the ranks have averaged them, so all see the same.

        Raises:
            UserError: one is not finite and the recipe does not say `rollback`, or has allowed enough.
            RolledBack: one is not finite and the recipe says `rollback`.
        """
        named = [(n, p.grad) for p, n in self._sharded.names.items() if p.grad is not None]
        if not named:
            return
        total = nn.utils.get_total_norm([grad for _, grad in named], foreach=True)
        is_finite = torch.isfinite(total)
        if self._waits:
            self._note(is_finite)
        elif not is_finite:
            step = self._step
            name = next((n for n, grad in named if not torch.isfinite(grad).all()), "all weights")
            what = f"the gradient of '{name}' is not finite, though the loss is"
            if self._policy == "rollback":
                self._take(Incident(step, what))
            raise UserError(
                f"step {step}: {what}; the tables have taken this step's gradients, so it can only be "
                "rolled back: find the cause and go on from the last checkpoint with --resume, or set "
                "train.on_nonfinite = 'rollback'"
            )

    def check(self) -> None:
        """Raise what was found on the device since the last call; to be called before anything is saved.

        Raises:
            UserError: names the step; which rank met it first is not known any more.
        """
        if not self._waits:
            return
        step = int(self._first)
        if step >= 0:
            raise UserError(f"step {step}: the loss or a gradient is not finite; {_GOING_ON}")

    def metrics(self) -> dict[str, float]:
        """`train/dropped_steps`, if there are any."""
        return {"train/dropped_steps": float(len(self.incidents))} if self.incidents else {}

    def _pass_over(self) -> None:
        """Leave nothing behind of a step that ends before backward."""
        self.has_dropped = True
        for before, now in zip(self._moments_before, self._moments, strict=True):
            now.copy_(before)  # the forward pass has moved them

    def _note(self, is_finite: Tensor) -> None:
        """Keep the first step that was not finite, on the device."""
        is_first = ~is_finite & (self._first < 0)
        self._first = torch.where(is_first, self._step, self._first)

    def _take(self, incident: Incident) -> None:
        """Record an incident, and raise what the recipe says of it."""
        limit = self._recipe.train.nonfinite_limit
        if len(self.incidents) >= limit:
            raise UserError(
                f"step {incident.step}: {incident.what}, after {limit} steps that were not either "
                "(train.nonfinite_limit); this is no accident of single rows: lower the learning rates, "
                "or set train.clip_norm and embedding.optimizer.clip"
            )
        self.incidents.append(incident)
        if self._ranks.is_first:
            found = [asdict(each) for each in self.incidents]
            write_whole(self._path, json.dumps(found, indent=1) + "\n")
        if self._policy == "rollback":
            raise RolledBack(incident)

    def _look(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what the leaf saw until backward, to name what is wrong in it."""
        if self._sharded.leaf.training:
            self._seen = inputs, output

    def _describe(self, seen: tuple[Any, Any] | None) -> str:
        """The first thing in the order of the computation that is not finite."""
        named = self._named(*seen) if seen is not None else iter(())
        for name, value in named:
            if not torch.isfinite(value.detach()).all():
                return name
        return "the loss"

    def _named(self, inputs: tuple[Any, ...], output: Any) -> Iterator[tuple[str, Tensor]]:
        """What a loss is made of, in the order of the computation."""
        pooled, batch, *rest = inputs
        tasks, columns = self._recipe.task_names, self._recipe.features.numeric
        yield from _columns(batch, columns)
        for parameter, name in self._sharded.names.items():
            yield f"the weight '{name}'", parameter
        for vectors in pooled:
            for key, value in vectors.to_dict().items():
                yield f"a vector of '{key}'", value
        for vectors in rest[0] if rest else ():
            for key, value in vectors.items():
                yield f"a vector of '{key}'", value.values()
        _, reported = output
        for at, task in enumerate(tasks):
            yield f"a logit of task '{task}'", reported.logits[:, at]
        for at, task in enumerate(tasks):
            yield f"the loss of task '{task}'", reported.losses.per_task[at]


def _columns(batch: Batch, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for at, name in enumerate(names):
        yield f"column '{name}'", batch.dense[:, at]


def _shared(path: Path, ranks: Ranks) -> list[Incident]:
    """The incidents of earlier starts, as rank 0 finds them.

    Collective: every rank calls it.
    """
    found: list[Any] = [None]
    if ranks.is_first:
        found = [json.loads(path.read_text()) if path.exists() else []]
    if ranks.world_size > 1:
        dist.broadcast_object_list(found, 0)
    return [Incident(**each) for each in found[0]]
