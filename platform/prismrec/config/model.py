"""Recipe section of the model: a name and the fields of that model, one class each.

The builders that turn a section into modules are `prismrec.models.zoo`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from prismrec.config.external import PATTERN
from prismrec.config.section import Section


class _Common(Section):
    merge: Literal["mean", "gate"] = "mean"
    """How the experts of several sets meet: their mean, or a softmax gate per task."""

    @field_validator("hidden", mode="before", check_fields=False)
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class _Deep(_Common):
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (400, 400)
    """Widths of the hidden layers of the DNN."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    norm: Literal["layer", "batch", "none"] = "layer"
    """Normalisation after each hidden linear layer; batch moments are over the global batch."""


class LR(_Common):
    """Logistic regression: a bias and one weight per id."""

    name: Literal["lr"]


class FM(_Common):
    """Factorization machine: first-order weights and all pairwise inner products."""

    name: Literal["fm"]
    projection: int = Field(default=64, ge=1)
    """Width of the non-linear projection of each set, used only where there are several sets."""


class DNN(_Deep):
    """A multi-layer perceptron on the flattened embeddings."""

    name: Literal["dnn"]


class WideDeep(_Deep):
    """First-order weights beside a DNN."""

    name: Literal["wide_deep"]


class DeepFM(_Deep):
    """FM and DNN on the same embeddings, their logits added."""

    name: Literal["deepfm"]


class DCN(_Deep):
    """Cross network with a weight vector per layer, beside a DNN."""

    name: Literal["dcn"]
    num_cross_layers: int = Field(default=3, ge=1)


class DCNv2(_Deep):
    """Cross network with a weight matrix per layer, beside or below a DNN."""

    name: Literal["dcnv2"]
    num_cross_layers: int = Field(default=3, ge=1)
    cross_rank: int | None = Field(default=None, ge=1)
    """Rank of each cross matrix; full rank if not given."""
    structure: Literal["parallel", "stacked"] = "parallel"


class Interaction(_Deep):
    """An interaction outside the package, below the layers of a DNN; one per embedding set."""

    name: Literal["interaction"]
    interaction: str = Field(pattern=PATTERN)
    """`package.module:function`; called as `function(num_fields, dim, options)`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function as they stand; values must be numbers, strings or booleans."""


class Custom(Section):
    """A model outside the package, called as `build(fields, options)`."""

    name: str = Field(pattern=PATTERN)
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function as they stand."""


WITH_FIRST_ORDER = ("lr", "fm", "wide_deep", "deepfm")
"""Models that have a weight for every id, beside the sets that they read."""
WITHOUT_SETS = ("lr",)
"""Models that read no embedding set."""

BUILT_IN: dict[str, type[Section]] = {
    "lr": LR,
    "fm": FM,
    "dnn": DNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "interaction": Interaction,
}
"""Every model of the zoo by its recipe name."""
