"""Models: everything between the looked-up embedding sets and the logits, on one device.

Nothing here looks up, shards, optimises or reads files. `build_model` turns a recipe's `[model]`
section into a module; `mixture.py` is the composition they all share.
"""

from prismrec.models.assembly import Assembly
from prismrec.models.inputs import Fields, Inputs, SequenceInputs, SequenceShape
from prismrec.models.mixture import Composition, RankingModel
from prismrec.models.zoo import (
    MODELS,
    build_model,
    fields_of,
    needs_linear,
    needs_sets,
    spec_of,
)

__all__ = [
    "MODELS",
    "Assembly",
    "Composition",
    "Fields",
    "Inputs",
    "RankingModel",
    "SequenceInputs",
    "SequenceShape",
    "build_model",
    "fields_of",
    "needs_linear",
    "needs_sets",
    "spec_of",
]
