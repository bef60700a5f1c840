"""D-Train: one head on all domains, then a head for each, then the heads alone.

Source: Wang et al., Decoupled Training: Return of Frustratingly Easy Multi-Domain Learning, AAAI 2024.
How long each phase is, and that a phase does not end by itself on a plateau, are our choices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.config.train import Phases
from prismrec.models.domains import DomainTowers
from prismrec.train.sharding import ShardedModel

PRE_TRAIN, POST_TRAIN, FINE_TUNE = 1, 2, 3


class PhasePlan:
    """Which phase each step is in, and what has to change on the way.

    1. pre-train: every row goes through the first head;
    2. post-train: the first head is copied to all others, its optimizer starts anew, and each row
       goes through the head of its domain;
    3. fine-tune: only heads move. The backbone runs as in evaluation and gets no gradient; tables are
       looked up and never updated.

    The phase follows from the step alone, so that a resumed run needs nothing but its step. Which
    heads the domains take is a buffer of the model: a checkpoint of any phase is evaluated, exported
    and served as it was trained.

    Args:
        section: `[train.phases]`, or None for a run without phases.
        total_steps: steps of the whole run.
        sharded: the model and its optimizers.

    Raises:
        UserError: the model has no towers of domains.
    """

    def __init__(self, section: Phases | None, total_steps: int, sharded: ShardedModel) -> None:
        self._sharded = sharded
        self._starts = None if section is None else section.starts(total_steps)
        self._phase: int | None = None
        self._towers: list[DomainTowers] = []
        if section is not None:
            modules = sharded.leaf.ranker.model.modules()
            self._towers = [each for each in modules if isinstance(each, DomainTowers)]
            if not self._towers:
                raise UserError(
                    "train.phases: the model has no towers of domains, which are the heads that "
                    "phases are about; set model.domain_towers = true, or leave train.phases out"
                )

    def before(self, step: int) -> None:
        """Make everything ready for a step that is about to run; nothing within a phase.

        Collective: every rank calls it.

        Raises:
            UserError: a resumed run has heads that do not fit the phase of its step.
        """
        if self._starts is None:
            return
        split, freeze = self._starts
        phase = PRE_TRAIN if step < split else POST_TRAIN if step < freeze else FINE_TUNE
        if phase == self._phase:
            return
        if self._phase is None and step > 0:
            self._check(step, is_split=step > split)
        if phase == PRE_TRAIN:
            for towers in self._towers:
                towers.take_first()
        elif step == split:
            self._split()
        if phase == FINE_TUNE:
            self._freeze()
        self._phase = phase

    def metrics(self) -> dict[str, float]:
        """`train/phase`, in a run with phases."""
        return {} if self._phase is None else {"train/phase": float(self._phase)}

    @torch.no_grad()
    def _split(self) -> None:
        sharded = self._sharded
        for towers in self._towers:
            towers.split()
        heads = self._parameters()
        averages = sharded.averages()
        for parameter, name in sharded.names.items():
            if parameter not in heads:
                continue
            if name in averages:
                first = averages[name][:1]
                averages[name].copy_(first.expand_as(averages[name]))
            for state in sharded.plain[0].state[parameter].values():
                if isinstance(state, Tensor):
                    state.zero_()

    def _freeze(self) -> None:
        self._sharded.average_copies()  # or the next average would move what stands still
        self._sharded.leaf.ranker.freeze(self._towers)
        heads = self._parameters()
        frozen = [each for each in self._sharded.names if each not in heads]
        self._sharded.optimizers.frozen = frozen

    def _parameters(self) -> set[nn.Parameter]:
        return {each for towers in self._towers for each in towers.parameters()}

    def _check(self, step: int, *, is_split: bool) -> None:
        """Hold the heads of a checkpoint against the phase of its step."""
        for towers in self._towers:
            heads = towers.of_domain.heads
            was_split = bool((heads != 0).any()) or len(heads) == 1
            if was_split != is_split and len(heads) > 1:
                raise UserError(
                    f"train.phases: at step {step} the heads are to be "
                    f"{'split' if is_split else 'one'}, but those of the checkpoint are "
                    f"{'split' if was_split else 'one'}; give train.phases.steps as they were, or "
                    "start a new run"
                )
