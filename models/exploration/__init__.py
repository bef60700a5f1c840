"""Choosing by how sure a model is: uncertainty on the last hidden layer, and the scores it gives."""

from prismrec.models.exploration.gaussian import GaussianHead
from prismrec.models.exploration.laplace import LastLayerLaplace
from prismrec.models.exploration.scores import (
    expected_probability,
    probit_mean,
    thompson,
    upper_bound,
)

__all__ = [
    "GaussianHead",
    "LastLayerLaplace",
    "expected_probability",
    "probit_mean",
    "thompson",
    "upper_bound",
]
