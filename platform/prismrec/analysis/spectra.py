"""Singular spectra, and the numbers that say how many dimensions a matrix really uses.

A tall matrix A (rows, K) is summed up by its Gram matrix G = A^T A (K, K) in fp64, which can be
added up over blocks of rows and over ranks; sigma = sqrt(eigenvalues of G). Squaring costs
precision: a singular value below about 1e-7 of the largest drowns in rounding (`GRAM_FLOOR`), and
is reported as 0. `spectrum` of a matrix at hand takes its exact decomposition instead.

Source: "On the Embedding Collapse when Scaling up Recommendation Models" (ICML 2024) for
information abundance; Garrido et al., "RankMe" (ICML 2023) for the effective rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_FLOOR = 1e-7
"""Share of the largest singular value below which a Gram matrix knows nothing."""

_RANKME_EPS = 1e-7
_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix.

    Args:
        sigma: (K,) float64, descending, not negative.
        rows: rows of the matrix; of a weighted one, those with a weight.
    """

    sigma: Tensor
    rows: int

    @property
    def bound(self) -> int:
        """The most dimensions the matrix could span, min(rows, K)."""
        return min(self.rows, len(self.sigma))

    @property
    def is_zero(self) -> bool:
        """Whether every number of the matrix is zero, so that it has no shape to speak of."""
        return not len(self.sigma) or float(self.sigma[0]) == 0.0

    @property
    def is_finite(self) -> bool:
        """Whether every number of the matrix is finite; nothing else is known of one that is not."""
        return bool(torch.isfinite(self.sigma).all())

    @property
    def information_abundance(self) -> float:
        """Sum of the singular values over the largest: 1 (one direction) to `bound`; 0 of zeros."""
        return 0.0 if self.is_zero else float(self.sigma.sum() / self.sigma[0])

    @property
    def rank_me(self) -> float:
        """Exponential of the entropy of the singular values' shares: 1 to `bound`; 0 of zeros."""
        if self.is_zero:
            return 0.0
        shares = self.sigma[: self.bound] / self.sigma.sum() + _RANKME_EPS
        return math.exp(-float((shares * shares.log()).sum()))

    @property
    def stable_rank(self) -> float:
        """Sum of squares over the largest square: 1 to `bound`; 0 of zeros."""
        return 0.0 if self.is_zero else float((self.sigma / self.sigma[0]).square().sum())

    @property
    def nuclear_norm(self) -> float:
        """Sum of the singular values."""
        return float(self.sigma.sum())

    def dimensions(self, energy: float) -> int:
        """Fewest directions that hold a share `energy` (0..1) of the sum of squares; 0 of zeros."""
        if self.is_zero:
            return 0
        squares = self.sigma.square().cumsum(0)
        return int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) + 1

    def normalised(self) -> Tensor:
        """(K,) natural logarithm of sigma_k / sigma_1, -inf where sigma_k is 0."""
        return (self.sigma / self.sigma[0]).log() if not self.is_zero else self.sigma.log()


def spectrum(matrix: Tensor) -> Spectrum:
    """The exact spectrum of a matrix (rows, K), K values in fp64 whatever the number of rows."""
    values = torch.linalg.svdvals(matrix.detach().double())
    sigma = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    sigma[: len(values)] = values
    return Spectrum(sigma.cpu(), matrix.shape[0])


def gram(matrix: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """A^T diag(w) A (K, K) in fp64, a block of rows at a time.

    Args:
        matrix: A (rows, K), of any floating type.
        row_weights: w (rows,), not negative; how often each row counts. 1 if not given.
    """
    total = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for start in range(0, matrix.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        block = matrix[rows].detach().double()
        left = block if row_weights is None else block * row_weights[rows].double().unsqueeze(1)
        total.addmm_(left.t(), block)
    return total


def spectrum_of_gram(matrix: Tensor, rows: int) -> Spectrum:
    """The spectrum of a matrix from its Gram matrix (K, K); all NaN where that is not finite.

    Args:
        matrix: A^T A, float64.
        rows: rows of A that are in it.
    """
    if not bool(torch.isfinite(matrix).all()):
        return Spectrum(torch.full((len(matrix),), torch.nan, dtype=torch.float64), rows)
    values = torch.linalg.eigvalsh(matrix.double()).flip(0).clamp(min=0).cpu()
    sigma = values.sqrt()
    if len(sigma):
        sigma[sigma < GRAM_FLOOR * sigma[0]] = 0
    return Spectrum(sigma, rows)


def centred_spectrum(samples: Tensor) -> Spectrum:
    """The exact spectrum of samples (rows, K) without their mean: the shape of their covariance."""
    return spectrum(samples.double() - samples.double().mean(0))


def set_variation(first: Tensor, second: Tensor) -> float:
    """How much the spans of two sets of one table differ: 0 (the same) to 1 (nothing in common).

    1 - ||U_a^T U_b||_* / K for the left singular bases U of two (rows, K) matrices.
    """
    bases = [torch.linalg.svd(each.double(), full_matrices=False)[0] for each in (first, second)]
    width = min(first.shape[1], second.shape[1])
    return 1 - float(torch.linalg.svdvals(bases[0].t() @ bases[1]).sum()) / width


@dataclass(frozen=True)
class PairAbundance:
    """Information abundance of every field's vectors as they meet every other field.

    Args:
        values: (N, N) float64; [i, j] is IA(E_i -> E_j). The diagonal is NaN where a field does
            not meet itself.
        fields: names of the N fields.
    """

    values: Tensor
    fields: tuple[str, ...]

    def of_sources(self) -> Tensor:
        """(N,) sums over partners j: they follow the source's own abundance."""
        return self.values.nansum(1)

    def of_partners(self) -> Tensor:
        """(N,) sums over sources i: partners of low abundance pull what meets them down."""
        return self.values.nansum(0)


def pair_abundance(
    tables: Mapping[str, Tensor], blocks: Mapping[tuple[str, str], Tensor]
) -> PairAbundance:
    """Spectra of the sub-embeddings E_{i->j} = E_i M_{i->j} of a projected interaction.

    Args:
        tables: the vectors (rows_i, K) of every field i.
        blocks: the matrices M_{i->j} (K, K_out) by (i, j); pairs without one stay NaN.
    """
    return pair_abundance_of_grams({name: gram(table) for name, table in tables.items()}, blocks)


def pair_abundance_of_grams(
    grams: Mapping[str, Tensor], blocks: Mapping[tuple[str, str], Tensor]
) -> PairAbundance:
    """The same from the Gram matrices (K, K) of the fields' vectors; pairs with other fields are left out."""
    fields = tuple(grams)
    place = {name: at for at, name in enumerate(fields)}
    values = torch.full((len(fields), len(fields)), math.nan, dtype=torch.float64)
    for (source, partner), block in blocks.items():
        if source in place and partner in place:
            projected = block.double().t() @ grams[source] @ block.double()
            abundance = spectrum_of_gram(projected, len(projected)).information_abundance
            values[place[source], place[partner]] = abundance
    return PairAbundance(values, fields)
