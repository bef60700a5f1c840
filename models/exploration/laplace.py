"""How sure a trained model is: Bayesian logistic regression on its last hidden layer.

Notation: B rows, d width of the last layer (with a 1 appended where there is a bias), phi (B, d), p predicted
probabilities, L lower Cholesky factor of the precision.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class LastLayerLaplace(nn.Module):
    """The Laplace approximation of the last layer: N(w, P^-1), P = prior I + sum w p (1 - p) phi phi'.

    It is made after training and sends no gradient anywhere. Numbers are float64.

    Args:
        width: of the last layer.
        prior: precision of every weight before any row, above 0.
        has_bias: a 1 is appended to the layer.
    """

    precision: Tensor

    def __init__(self, width: int, prior: float = 1.0, *, has_bias: bool = True) -> None:
        super().__init__()
        if prior <= 0:
            raise ValueError(f"the prior precision is above 0, got {prior}")
        self.prior, self.has_bias = prior, has_bias
        size = width + has_bias
        self.register_buffer("precision", prior * torch.eye(size, dtype=torch.float64))
        self._factor: Tensor | None = None

    @torch.no_grad()
    def update(
        self, phi: Tensor, p: Tensor, weights: Tensor | None = None, keep: float = 1.0
    ) -> None:
        """Take rows into account: `P <- keep P + (1 - keep) prior I + sum w p (1 - p) phi phi'`.

        Collective where a process group is initialised: every rank calls it with its own rows, and all
        have those of all.

        Args:
            phi: (B, d) last hidden layer.
            p: (B,) predicted probabilities.
            weights: (B,) of the rows; 1 if not given.
            keep: how much of what was known before stays, in (0, 1].
        """
        rows, p = self._rows(phi), p.double()
        each = p * (1 - p) if weights is None else weights.double() * p * (1 - p)
        added = rows.mT @ (each.unsqueeze(1) * rows)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(added)
        start = self.prior * torch.eye(
            len(self.precision), dtype=torch.float64, device=added.device
        )
        self.precision.copy_(keep * self.precision + (1 - keep) * start + added)
        self._factor = None

    @torch.no_grad()
    def variance(self, phi: Tensor) -> Tensor:
        """Variance of the logit, (B,): `phi' P^-1 phi`."""
        solved = torch.linalg.solve_triangular(self._cholesky(), self._rows(phi).mT, upper=False)
        return solved.square().sum(0)

    @torch.no_grad()
    def draw(self, phi: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What one draw of the weights adds to the logits of all rows, (B,): rows that are alike move alike.

        That is Thompson sampling of a whole request: give it the rows of one request.
        """
        noise = torch.randn(
            1, len(self.precision), dtype=torch.float64, device=phi.device, generator=generator
        )
        return self.move(phi, noise, torch.zeros(len(phi), dtype=torch.int64, device=phi.device))

    @torch.no_grad()
    def move(self, phi: Tensor, noise: Tensor, place: Tensor) -> Tensor:
        """What draws of the weights add to logits, (B,).

        Args:
            phi: (B, d).
            noise: (G, weights) standard normal numbers, a draw each.
            place: (B,) the draw of every row.
        """
        weights = torch.linalg.solve_triangular(self._cholesky().mT, noise.mT, upper=True).mT
        return (self._rows(phi) * weights[place]).sum(1)

    def _rows(self, phi: Tensor) -> Tensor:
        rows = phi.detach().double()
        if not self.has_bias:
            return rows
        return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)

    def _cholesky(self) -> Tensor:
        if self._factor is None:
            self._factor = torch.linalg.cholesky(self.precision)
        return self._factor
