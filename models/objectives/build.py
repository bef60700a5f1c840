"""From the tasks of a recipe to their objective and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prismrec.config import Recipe
from prismrec.config.external import import_function
from prismrec.config.objectives import (
    BceList,
    BceRankNet,
    BceRcr,
    Defer,
    EsDfm,
    Fnc,
    Fnw,
    LossSection,
)
from prismrec.config.objectives import Focal as FocalSection
from prismrec.models.objectives.decoder import Decoder
from prismrec.models.objectives.delayed import (
    ElapsedTime,
    FakeNegativeWeighted,
    RealNegatives,
    Reweigh,
)
from prismrec.models.objectives.losses import (
    Focal,
    Generative,
    ListNet,
    RankNet,
    Rcr,
    TaskLoss,
)
from prismrec.models.objectives.objective import Objective
from prismrec.models.objectives.reduction import DomainMeans


def build_objective(recipe: Recipe, num_domains: int) -> Objective:
    """The objective of a recipe's tasks.

    Args:
        recipe: the resolved recipe.
        num_domains: S, or 0 where nothing tells domains apart.

    Raises:
        UserError: a task names a loss of another package that is not there.
    """
    losses = []
    for index, task in enumerate(recipe.tasks):
        loss = task_loss(f"tasks[{index}].loss", task.loss)
        applied = "none" if task.propensity is None else task.propensity.apply_to
        rule = _reweigh(task.loss, recipe.task_names)
        losses.append(replace(loss, pos_weight=task.pos_weight, propensity=applied, reweigh=rule))
    return Objective(
        losses, [task.weight for task in recipe.tasks], _by_domain(recipe, num_domains)
    )


def _by_domain(recipe: Recipe, num_domains: int) -> DomainMeans | None:
    chosen = recipe.train.domain_reduction
    if chosen == "global_mean":
        return None
    is_tempered = chosen == "tempered"
    return DomainMeans(num_domains, recipe.train.domain_temperature if is_tempered else None)


def build_decoder(recipe: Recipe) -> Decoder:
    """What turns the columns of a recipe's model into a logit per task."""
    tasks = recipe.tasks
    return Decoder(
        [task.has_level for task in tasks], [isinstance(task.loss, Fnc) for task in tasks]
    )


def _reweigh(loss: str | LossSection, tasks: Sequence[str]) -> Reweigh | None:
    """The rule of a loss of conversions that come late."""
    if isinstance(loss, Fnw):
        return FakeNegativeWeighted()
    if isinstance(loss, EsDfm):
        return ElapsedTime(tasks.index(loss.late), tasks.index(loss.real_negative))
    if isinstance(loss, Defer):
        return RealNegatives(tasks.index(loss.late))
    return None


def task_loss(key: str, loss: str | LossSection) -> TaskLoss:
    """The loss that a recipe names.

    Args:
        key: what it is called in errors, such as `tasks[0].loss`.
        loss: `bce`, `package.module:function`, or a section.

    Raises:
        UserError: there is no such function.
    """
    if isinstance(loss, str):
        return TaskLoss() if loss == "bce" else TaskLoss(import_function(key, loss))
    if isinstance(
        loss, Fnw | Fnc | EsDfm | Defer
    ):  # cross-entropy; what rows count for is `_reweigh`
        return TaskLoss()
    if isinstance(loss, FocalSection):
        return TaskLoss(Focal(loss.gamma, loss.alpha))
    if isinstance(loss, BceRankNet):
        pairs = RankNet(loss.reduction, loss.weighted)
        return TaskLoss(of_batch=pairs, alpha=loss.alpha, is_grouped=loss.group)
    if isinstance(loss, BceList):
        return TaskLoss(of_batch=ListNet(), alpha=loss.alpha)
    if isinstance(loss, BceRcr):
        return TaskLoss(of_batch=Rcr(), alpha=loss.alpha)
    generative = Generative(loss.exclude_same_label)
    return TaskLoss(of_batch=generative, alpha=loss.alpha, is_grouped=loss.group, has_level=True)
