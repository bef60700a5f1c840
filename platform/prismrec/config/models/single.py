"""Recipe sections of the models whose sets all serve all tasks alike."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from prismrec.config.external import PATTERN
from prismrec.config.models.base import Common, Deep


class LR(Common):
    """Logistic regression: a bias and one weight per id."""

    has_first_order: ClassVar[bool] = True
    reads_sets: ClassVar[bool] = False
    name: Literal["lr"]


class FM(Common):
    """Factorization machine: first-order weights and all pairwise inner products."""

    has_first_order: ClassVar[bool] = True
    name: Literal["fm"]
    projection: int = Field(default=64, ge=1)
    """Width of the non-linear projection of each set, used only where there are several sets."""


class DNN(Deep):
    """A multi-layer perceptron on the flattened embeddings."""

    name: Literal["dnn"]


class WideDeep(Deep):
    """First-order weights beside a DNN."""

    has_first_order: ClassVar[bool] = True
    name: Literal["wide_deep"]


class DeepFM(Deep):
    """FM and DNN on the same embeddings, their logits added."""

    has_first_order: ClassVar[bool] = True
    name: Literal["deepfm"]


class DCN(Deep):
    """Cross network with a weight vector per layer, beside a DNN."""

    name: Literal["dcn"]
    num_cross_layers: int = Field(default=3, ge=1)


class DCNv2(Deep):
    """Cross network with a weight matrix per layer, beside or below a DNN."""

    name: Literal["dcnv2"]
    num_cross_layers: int = Field(default=3, ge=1)
    cross_rank: int | None = Field(default=None, ge=1)
    """Rank of each cross matrix; full rank if not given."""
    structure: Literal["parallel", "stacked"] = "parallel"


class Interaction(Deep):
    """An interaction outside the package, below the layers of a DNN; one per embedding set."""

    name: Literal["interaction"]
    interaction: str = Field(pattern=PATTERN)
    """`package.module:function`; called as `function(num_fields, dim, options)`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function as they stand; values must be numbers, strings or booleans."""


SINGLE: dict[str, type[Common]] = {
    "lr": LR,
    "fm": FM,
    "dnn": DNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "interaction": Interaction,
}
"""The models of this module by their recipe names."""
