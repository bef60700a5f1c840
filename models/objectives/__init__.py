"""Objectives: logits and labels to a scalar whose mean is exact over the global batch."""

from prismrec.models.objectives.losses import Objective, binary_cross_entropy, global_mean, row_loss

__all__ = ["Objective", "binary_cross_entropy", "global_mean", "row_loss"]
