"""Objectives: logits and labels to a scalar whose mean is exact over the global batch."""

from prismrec.models.objectives.build import build_decoder, build_objective, task_loss
from prismrec.models.objectives.decoder import Decoder
from prismrec.models.objectives.losses import TaskLoss, binary_cross_entropy
from prismrec.models.objectives.objective import Losses, Objective, Targets
from prismrec.models.objectives.reduction import global_mean

__all__ = [
    "Decoder",
    "Losses",
    "Objective",
    "Targets",
    "TaskLoss",
    "binary_cross_entropy",
    "build_decoder",
    "build_objective",
    "global_mean",
    "task_loss",
]
