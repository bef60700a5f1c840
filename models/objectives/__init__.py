"""Objectives: logits and labels to a scalar whose mean is exact over the global batch."""

from prismrec.models.objectives.losses import global_mean_bce

__all__ = ["global_mean_bce"]
