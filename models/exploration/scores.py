"""What a row is chosen by when a model knows how sure it is: its mean, an upper bound, or a draw.

A score that explores is for choosing only; billing and calibration go on with `probit_mean`.

Notation: m mean and v variance of the logit, any shape; s = sigmoid.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

QUADRATURE_POINTS = 20


def probit_mean(m: Tensor, v: Tensor) -> Tensor:
    """The expected probability, nearly: `s(m / sqrt(1 + pi v / 8))`, within 0.005 for v up to 1.

    >>> round(probit_mean(torch.tensor(-2.0).double(), torch.tensor(1.3472278197).double()).item(), 6)
    0.165563
    """
    return torch.sigmoid(m / torch.sqrt(1 + math.pi * v / 8))


def expected_probability(m: Tensor, v: Tensor) -> Tensor:
    """The expected probability by 20 points of Gauss-Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(QUADRATURE_POINTS)
    at = torch.as_tensor(points, dtype=m.dtype, device=m.device)
    share = torch.as_tensor(weights / weights.sum(), dtype=m.dtype, device=m.device)
    logits = m.unsqueeze(-1) + v.clamp(min=0).sqrt().unsqueeze(-1) * at
    return (torch.sigmoid(logits) * share).sum(-1)


def upper_bound(m: Tensor, v: Tensor, kappa: float) -> Tensor:
    """UCB: `s(m + kappa sqrt(v))`; kappa 0 is greedy."""
    return torch.sigmoid(m + kappa * v.clamp(min=0).sqrt())


def thompson(m: Tensor, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The probability of a draw from N(m, v) for each row, independent of the others'."""
    noise = torch.randn(m.shape, dtype=m.dtype, device=m.device, generator=generator)
    return torch.sigmoid(m + noise * v.clamp(min=0).sqrt())
