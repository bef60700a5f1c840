"""Recipe sections of the models whose sets all serve all tasks alike."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from prismrec.config.external import PATTERN
from prismrec.config.models.base import Common, Deep, Merging
from prismrec.config.models.interactions import (
    CINOptions,
    LayeredName,
    LayeredOptions,
    PartOptions,
    RankOptions,
)


class LR(Common):
    """Logistic regression: a bias and one weight per id."""

    has_first_order: ClassVar[bool] = True
    reads_sets: ClassVar[bool] = False
    name: Literal["lr"]


class Pairwise(Merging):
    """What every model that adds first-order weights and products of pairs has."""

    has_first_order: ClassVar[bool] = True
    name: Literal["fm", "ffm", "fwfm", "fvfm", "fmfm", "gwpfm"]
    projection: int = Field(default=64, ge=1)
    """Width of the non-linear projection of each set, used only where there are several sets."""


class FM(Pairwise):
    """Factorization machine: first-order weights and all pairwise inner products."""

    name: Literal["fm"]


class FFM(Pairwise):
    """Field-aware FM: a slot of a field's vector for each partner.

    The width of a set must be a multiple of its number of fields less one.
    """

    name: Literal["ffm"]


class FwFM(Pairwise, RankOptions):
    """Field-weighted FM: a weight for each pair of fields."""

    name: Literal["fwfm"]


class FvFM(Pairwise):
    """Field-vectorised FM: a vector of weights for each pair of fields."""

    name: Literal["fvfm"]


class FmFM(Pairwise):
    """Field-matrixed FM: a matrix for each pair of fields."""

    name: Literal["fmfm"]


class GwPFM(Pairwise, PartOptions):
    """Group-weighted part-aware FM: a slot of a field's vector for each part, weights by group."""

    name: Literal["gwpfm"]


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


class IPNN(Deep):
    """Inner products of all pairs, beside the embeddings, below a DNN."""

    name: Literal["ipnn"]
    include_fields: bool = True
    """Whether the embeddings themselves go into the DNN too."""


class XDeepFM(Deep, CINOptions):
    """First-order weights, a compressed interaction network and a DNN, their logits added."""

    has_first_order: ClassVar[bool] = True
    name: Literal["xdeepfm"]


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


class Layered(Deep, LayeredOptions):
    """What PFL and its family have: layers of products with one field more each."""

    has_first_order: ClassVar[bool] = True
    name: LayeredName
    structure: Literal["parallel", "stacked", "sum"] = "parallel"
    """What stands above the layers: a linear map of them and of a DNN beside them, a DNN, or their
    sum. With no `hidden` layer, stacked is a linear map of them alone."""


class WFL(Layered):
    """Layers of products, a weight for each pair of fields, added up by a weight per layer."""

    name: Literal["wfl"]


class DFL(Layered):
    """Layers of products, a diagonal for each pair of fields, added up by a weight per layer."""

    name: Literal["dfl"]


class PFL(Layered):
    """Layers of products, a projection for each pair of fields, added up by a weight per layer."""

    name: Literal["pfl"]


class PFT(Layered):
    """Layers of products, a projection for each pair of fields, added up by a weight per term."""

    name: Literal["pft"]


class PFE(Layered):
    """Layers of products, a projection for each pair of fields, added up by a weight per element."""

    name: Literal["pfe"]


class PFD(Layered):
    """Layers of products, a projection for each pair of fields, added up as they are."""

    name: Literal["pfd"]


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
    "ffm": FFM,
    "fwfm": FwFM,
    "fvfm": FvFM,
    "fmfm": FmFM,
    "gwpfm": GwPFM,
    "dnn": DNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "ipnn": IPNN,
    "xdeepfm": XDeepFM,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "wfl": WFL,
    "dfl": DFL,
    "pfl": PFL,
    "pft": PFT,
    "pfe": PFE,
    "pfd": PFD,
    "interaction": Interaction,
}
"""The models of this module by their recipe names."""
