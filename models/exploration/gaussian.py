"""A Gaussian process on the last hidden layer of a model, by inducing points (GPyTorch).

Unlike weights of the last layer it knows distance: far from every row it was trained on, its variance
goes back to that of the prior.

Notation: B rows, d width of the last layer, J inducing points, phi (B, d).
"""

from __future__ import annotations

import gpytorch
import torch
import torch.nn.functional as F
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from prismrec.models.exploration.scores import QUADRATURE_POINTS

_JITTER = 1e-4
"""Added to covariances in parts of their mean variance, so that rows that are equal can be drawn."""


class GaussianHead(gpytorch.models.ApproximateGP):
    """A sparse variational Gaussian process for the logit of a click.

    RBF kernel with a learned scale on phi, a constant mean, whitened q(u) = N(mu, S) with a full Cholesky
    factor. Hensman et al., "Scalable Variational Gaussian Process Classification", AISTATS 2015.

    Args:
        inducing: (J, d) rows of phi to begin with; they are learned too.
        scale: standard deviation of the prior.
    """

    def __init__(self, inducing: Tensor, scale: float = 1.0) -> None:
        q = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
        strategy = gpytorch.variational.VariationalStrategy(self, inducing, q)
        super().__init__(strategy)
        self.mean = gpytorch.means.ConstantMean()
        self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        self.kernel.outputscale = scale**2
        self.kernel.base_kernel.lengthscale = median_distance(inducing)
        self._quadrature = gpytorch.utils.quadrature.GaussHermiteQuadrature1D(QUADRATURE_POINTS)

    def forward(self, phi: Tensor) -> MultivariateNormal:
        """The prior at phi (B, d)."""
        return MultivariateNormal(self.mean(phi), self.kernel(phi))

    def loss(self, phi: Tensor, labels: Tensor, num_rows: int) -> Tensor:
        """What training makes small: minus the evidence's lower bound, per row.

        `-mean E_q[log p(y | f)] + KL(q(u), p(u)) / num_rows`, the expectation by 20 points of Gauss-Hermite.

        Args:
            phi: (B, d) of a batch.
            labels: (B,) in {0, 1}.
            num_rows: rows of the whole data.
        """
        signs = 2 * labels.to(phi.dtype) - 1
        expected = self._quadrature(lambda f: F.logsigmoid(signs * f), self(phi))
        return -expected.mean() + self.variational_strategy.kl_divergence().sum() / num_rows

    def predict(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logit, (B,) each."""
        found = self._posterior(phi)
        return found.mean, found.variance.clamp(min=0)

    def draw(self, phi: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the function at the rows of R requests, (R, B): rows of one that are alike move alike.

        That is Thompson sampling of whole requests.

        Args:
            phi: (R, B, d).
            generator: of the draws.
        """
        found = self._posterior(phi)
        covariance = found.covariance_matrix.double()
        size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(covariance.shape[-1], dtype=torch.float64, device=phi.device)
        factor = torch.linalg.cholesky(covariance + _JITTER * size * eye)
        noise = torch.randn(
            phi.shape[:2], dtype=torch.float64, device=phi.device, generator=generator
        )
        return found.mean + (factor @ noise.unsqueeze(-1)).squeeze(-1).to(phi.dtype)

    @torch.no_grad()
    def _posterior(self, phi: Tensor) -> MultivariateNormal:
        was_training = self.training
        self.eval()
        found = self(phi)
        self.train(was_training)
        return found


def median_distance(rows: Tensor) -> Tensor:
    """Median distance of two different rows (J, d), or 1 where all are one."""
    distances = torch.pdist(rows.detach())
    some = distances[distances > 0]
    return some.median() if len(some) else rows.new_ones(())
