"""Interactions: field vectors of one embedding set to one vector per row."""

from prismrec.models.interactions.base import Interaction, InteractionSpec, flatten
from prismrec.models.interactions.cross import CrossV1, CrossV1Spec, CrossV2, CrossV2Spec
from prismrec.models.interactions.dnn import DNN, DNNSpec
from prismrec.models.interactions.external import ExternalSpec
from prismrec.models.interactions.flat import Flat, FlatSpec
from prismrec.models.interactions.fm import BiInteraction, FMSpec

__all__ = [
    "DNN",
    "BiInteraction",
    "CrossV1",
    "CrossV1Spec",
    "CrossV2",
    "CrossV2Spec",
    "DNNSpec",
    "ExternalSpec",
    "FMSpec",
    "Flat",
    "FlatSpec",
    "Interaction",
    "InteractionSpec",
    "flatten",
]
