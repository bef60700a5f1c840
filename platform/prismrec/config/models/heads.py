"""Recipe sections of the models whose heads are a design of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from prismrec.config.errors import nearest
from prismrec.config.models.base import Common, DomainTowers

if TYPE_CHECKING:
    from prismrec.config.recipe import Recipe

Widths = tuple[Annotated[int, Field(ge=1)], ...]


class _Layered(Common):
    """What every model with MLPs on the vectors of its sets side by side has."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that an output of a hidden layer is zeroed in training."""
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each hidden linear layer; batch moments are over the global batch, in towers
    of domains over each domain's rows."""


class _Chain(DomainTowers, _Layered):
    """What takes the tasks one after another."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """See `Common.problems`."""
        name = getattr(self, "name", "")
        if len(recipe.tasks) < 2:
            yield f"tasks: '{name}' takes tasks one after another and needs at least 2, got 1"
        for index, task in enumerate(recipe.tasks):
            if task.has_level:
                yield (
                    f"tasks[{index}].loss: 'jrc' needs a second logit per task, which '{name}' does "
                    "not have; choose another loss or another model"
                )
        yield from super().problems(recipe)


class ESMM(_Chain):
    """A tower per task, each given the one before it; the probabilities of the chain multiply."""

    name: Literal["esmm"]
    hidden: Widths = (360, 200, 80)
    """Widths of the hidden layers of each tower."""
    strict_labels: bool = True
    """Whether a row with a label but without the one before it ends the run."""


class AITM(_Chain):
    """A bottom per task, which attends to what the task before it tells."""

    name: Literal["aitm"]
    hidden: Widths = Field(default=(128, 64, 32), min_length=1)
    """Widths of the hidden layers of each task's bottom."""
    tower: Widths = ()
    """Widths of the hidden layers of each task's tower."""
    transfer: Literal["per_task", "shared"] = "per_task"
    """Whether each task has maps of attention of its own."""
    calibrator: float = Field(default=0.6, ge=0)
    """Weight of the loss on probabilities that grow along the tasks; 0 for none."""
    calibrator_reduction: Literal["sum", "mean"] = "sum"
    """Over the rows of a step: the paper's sum, or their mean, which no batch size changes."""


class PEPNet(_Layered):
    """Towers of tasks whose inputs are gated by domain and whose units by prior features."""

    name: Literal["pepnet"]
    prior_set: str
    """Embedding set of the prior features (user, item, author), read by the gates alone."""
    domain_set: str | None = None
    """Embedding set of the domain's features, read by the gate on the inputs alone; without it there
    is no such gate."""
    hidden: Widths = (400, 400)
    """Widths of the hidden layers of each task's tower."""
    gate_position: Literal["pre", "post"] = "pre"
    """Gates on the input of every layer, or on the output of every hidden layer."""
    gate_hidden: int | None = Field(default=None, ge=1)
    """Width of the gates' hidden layers; that of their output if not given."""
    gate_scale: float = Field(default=2.0, gt=0)
    """Upper bound of a gate; 2 lets gates start at 1."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """See `Common.problems`."""
        known = [each.name for each in recipe.embedding.resolved_sets]
        given = {"prior_set": self.prior_set, "domain_set": self.domain_set}
        for key, name in given.items():
            if name is not None and name not in known:
                yield f"model.{key}: no set is called '{name}'; {nearest(name, known)}"
        if self.prior_set == self.domain_set:
            yield "model.domain_set: is the prior_set too; name another set or leave it out"
        if not set(known) - set(given.values()):
            yield (
                "embedding.sets: every set is named as the model's prior_set or domain_set, and none "
                "is left for its towers; add one"
            )
        yield from super().problems(recipe)


class STAR(Common):
    """A network per domain, the shared one times the domain's factors, and partitioned normalisation."""

    name: Literal["star"]
    hidden: Widths = (400, 400)
    """Widths of the hidden layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: Literal["partitioned", "layer", "none"] = "partitioned"
    """Normalisation of the inputs: by the moments of each domain's rows, per row, or none."""
    auxiliary: int = Field(default=32, ge=1)
    """Width of the hidden layer of the auxiliary network, which is told the domain."""
    domain_dim: int = Field(default=8, ge=1)
    """Width of the auxiliary network's vector of a domain."""
    auxiliary_reads_features: bool = True
    """Whether the auxiliary network reads the inputs too."""

    @property
    def reads_domain(self) -> bool:
        """Always."""
        return True


HEADS: dict[str, type[Common]] = {"pepnet": PEPNet, "star": STAR, "esmm": ESMM, "aitm": AITM}
"""The models of this module by their recipe names."""
