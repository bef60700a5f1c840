"""What the sections of the models have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from prismrec.config.embedding import EmbeddingSection, SetOptions
from prismrec.config.models.sequence import SequenceKind, attention_set
from prismrec.config.section import Section

if TYPE_CHECKING:
    from prismrec.config.recipe import Recipe


class Common(Section):
    """What every model of the zoo has."""

    has_first_order: ClassVar[bool] = False
    """Whether the model has a weight for every id, beside the sets that it reads."""
    reads_sets: ClassVar[bool] = True
    """Whether the model reads embedding sets."""

    @property
    def reads_domain(self) -> bool:
        """Whether the model tells the domains of rows apart, the `domain` input of its `forward`."""
        return False

    sequence: SequenceKind | None = None
    """What reads `features.sequences` for every expert: `"tim"`, or `{kind = "din", hidden = [64]}`."""

    def expert_sets(self, section: EmbeddingSection) -> list[SetOptions]:
        """The embedding sets that experts read: all but one that only weighs behaviours."""
        weighing = attention_set(self.sequence)
        return [each for each in section.resolved_sets if each.name != weighing]

    def problems(self, recipe: Recipe) -> Iterator[str]:
        """Why the model does not go with the rest of the recipe, a sentence each, from the key on."""
        yield from ()

    @field_validator("hidden", "gate_hidden", "tower", mode="before", check_fields=False)
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Merging(Common):
    """What every model has whose tasks share what the experts of several sets find."""

    merge: Literal["mean", "gate"] = "mean"
    """How the experts of several sets meet: their mean, or a softmax gate per task."""


class Deep(Merging):
    """What every model with a DNN has."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (400, 400)
    """Widths of the hidden layers of the DNN."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each hidden linear layer; batch moments are over the global batch."""


class DomainTowers(Common):
    """What every model with a tower per task has that domains may have for themselves."""

    domain_towers: bool = False
    """Whether each domain has towers of its own, which only its rows train; see `features.domain`."""

    @property
    def reads_domain(self) -> bool:
        """With towers of domains."""
        return self.domain_towers
