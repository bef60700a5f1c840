"""Choosing by how sure a model is: uncertainty on the last hidden layer, and the scores it gives.

`GaussianHead` is in `prismrec.models.exploration.gaussian`: it loads GPyTorch, which nothing here needs.
"""

from prismrec.models.exploration.laplace import LastLayerLaplace
from prismrec.models.exploration.scores import (
    expected_probability,
    probit_mean,
    thompson,
    upper_bound,
)

__all__ = [
    "LastLayerLaplace",
    "expected_probability",
    "probit_mean",
    "thompson",
    "upper_bound",
]
