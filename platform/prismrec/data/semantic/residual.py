"""Residual quantisation: each level codes what the levels before have left over.

r_1 = z;  c_l = argmin_j |r_l - C_l[j]|^2;  r_(l+1) = r_l - C_l[c_l];  z is about the sum of the C_l[c_l].

Notation: n vectors, D width, L levels, V_l codes of level l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prismrec.data.semantic.kmeans import fit_centers, nearest

Done = Callable[[], None]
"""Called after each part of a fit."""


def encode(vectors: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Codes of vectors, and what every level leaves over.

    Args:
        vectors: (n, D).
        codebooks: (V_l, D) of each level, of the same type.

    Returns:
        (n, L) codes, and (n, L + 1) squared lengths of the residuals, the vectors' own first.
    """
    residual, codes = vectors, []
    squares = [residual.square().sum(dim=1)]
    for codebook in codebooks:
        codes.append(nearest(residual, codebook))
        residual = residual - codebook[codes[-1]]
        squares.append(residual.square().sum(dim=1))
    return torch.stack(codes, dim=1), torch.stack(squares, dim=1)


def decode(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """(n, D) vectors that codes (n, at most L) stand for: the sum of their levels' centers."""
    parts = [book[of_level] for book, of_level in zip(codebooks, codes.unbind(dim=1), strict=False)]
    return torch.stack(parts).sum(dim=0)


def fit_levels(
    vectors: Tensor,
    sizes: Sequence[int],
    generator: torch.Generator,
    iterations: int,
    done: Done | None = None,
) -> list[Tensor]:
    """Codebooks by k-means on the residuals, level after level: RQ-KMeans.

    Args:
        vectors: (n, D), n at least the largest size.
        sizes: (L,) codes of every level.
        generator: of the CPU.
        iterations: passes over the vectors at most, of every level.
        done: called after each level.
    """
    residual, codebooks = vectors, []
    for size in sizes:
        codebooks.append(fit_centers(residual, size, generator, iterations))
        residual = residual - codebooks[-1][nearest(residual, codebooks[-1])]
        if done is not None:
            done()
    return codebooks
