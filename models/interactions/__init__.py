"""Interactions: field vectors of one embedding set to one vector per row."""

from prismrec.models.interactions.base import Interaction, InteractionSpec, flatten
from prismrec.models.interactions.cin import CIN, CINSpec
from prismrec.models.interactions.cross import CrossV1, CrossV1Spec, CrossV2, CrossV2Spec
from prismrec.models.interactions.dnn import DNN, DNNSpec
from prismrec.models.interactions.external import ExternalSpec
from prismrec.models.interactions.flat import Flat, FlatSpec
from prismrec.models.interactions.fm import BiInteraction, FMSpec
from prismrec.models.interactions.inner import InnerProducts, InnerProductsSpec
from prismrec.models.interactions.layered import Layered, LayeredSpec
from prismrec.models.interactions.pairs import (
    FieldMatrixed,
    FieldVectorised,
    FieldWeighted,
    FmFMSpec,
    FvFMSpec,
    FwFMSpec,
    LowRankWeighted,
)
from prismrec.models.interactions.slots import FFMSpec, FieldAware, GroupedParts, GwPFMSpec

__all__ = [
    "CIN",
    "DNN",
    "BiInteraction",
    "CINSpec",
    "CrossV1",
    "CrossV1Spec",
    "CrossV2",
    "CrossV2Spec",
    "DNNSpec",
    "ExternalSpec",
    "FFMSpec",
    "FMSpec",
    "FieldAware",
    "FieldMatrixed",
    "FieldVectorised",
    "FieldWeighted",
    "Flat",
    "FlatSpec",
    "FmFMSpec",
    "FvFMSpec",
    "FwFMSpec",
    "GroupedParts",
    "GwPFMSpec",
    "InnerProducts",
    "InnerProductsSpec",
    "Interaction",
    "InteractionSpec",
    "Layered",
    "LayeredSpec",
    "LowRankWeighted",
    "flatten",
]
