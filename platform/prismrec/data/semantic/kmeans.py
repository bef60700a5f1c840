"""k-means in batches: seeded, the same on every run, and without a center that nobody is near.

Notation: n vectors, V centers, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK_NUMBERS = 1 << 24
"""Distances that are held at a time."""


def nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """(n,) the center that is nearest to each vector, the first of equal ones.

    |r|^2 is the same for all centers of a vector r, so |c|^2 - 2 r c decides. Memory is bounded
    whatever n is.

    Args:
        vectors: (n, D).
        centers: (V, D) of the same type.
    """
    squares = centers.square().sum(dim=1)
    chunk = max(1, _CHUNK_NUMBERS // len(centers))
    found = [
        torch.addmm(squares, part, centers.t(), alpha=-2).argmin(dim=1)
        for part in vectors.split(chunk)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=vectors.device)


def sums_by_code(vectors: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """(V, D) float64 sums of the vectors that have each code, and (V,) how many there are.

    As a product with the indicator of the codes: the same on every run, on every device.
    """
    counts = torch.bincount(codes, minlength=num_codes)
    sums = torch.zeros(num_codes, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    chunk = max(1, _CHUNK_NUMBERS // num_codes)
    for part, of_part in zip(vectors.split(chunk), codes.split(chunk), strict=True):
        indicator = torch.nn.functional.one_hot(of_part, num_codes).to(part.dtype)
        sums += indicator.t() @ part
    return sums, counts


def spread_centers(vectors: Tensor, num_centers: int, generator: torch.Generator) -> Tensor:
    """(V, D) vectors to begin with, each drawn by its squared distance from those before.

    Of a few that are drawn, the one is taken that leaves the least sum of squared distances.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, in
    its greedy form.

    Args:
        vectors: (n, D), n at least V.
        num_centers: V.
        generator: of the CPU.
    """
    tries = 2 + int(math.log(num_centers))
    draws = torch.rand(num_centers, tries, generator=generator, dtype=torch.float64)
    draws = draws.to(vectors.device)
    squares = vectors.square().sum(dim=1)
    distances = torch.ones_like(squares)  # the first is drawn from all alike
    chosen: list[Tensor] = []
    for draw in draws:
        mass = distances.double().cumsum(dim=0)
        drawn = torch.searchsorted(mass, mass[-1] * draw, right=True).clamp(max=len(vectors) - 1)
        found = squares[:, None] - 2 * vectors @ vectors[drawn].t() + squares[drawn]
        if chosen:
            found = torch.minimum(found, distances[:, None])
        found = found.clamp(min=0)
        best = found.sum(dim=0, dtype=torch.float64).argmin()
        chosen.append(drawn[best])
        distances = found[:, best]
    return vectors[torch.stack(chosen)]


def fit_centers(
    vectors: Tensor, num_centers: int, generator: torch.Generator, iterations: int
) -> Tensor:
    """(V, D) centers whose mean squared distance from their vectors has stopped falling.

    A center that no vector is nearest to begins anew at the vector that is farthest from its own
    center, the next one at the next vector; none is left dead while vectors differ from their centers.

    Args:
        vectors: (n, D), n at least V.
        num_centers: V.
        generator: of the CPU.
        iterations: passes over the vectors at most.
    """
    return settled_centers(vectors, spread_centers(vectors, num_centers, generator), iterations)


def settled_centers(vectors: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """(V, D) what centers move to; see `fit_centers`.

    Args:
        vectors: (n, D).
        centers: (V, D) to begin with.
        iterations: passes over the vectors at most.
    """
    before = None
    for _ in range(iterations):
        codes = nearest(vectors, centers)
        if before is not None and torch.equal(codes, before):
            break
        centers = moved_centers(vectors, codes, centers)
        before = codes
    return centers


def moved_centers(vectors: Tensor, codes: Tensor, centers: Tensor) -> Tensor:
    """(V, D) the mean of the vectors of each center; one without vectors begins anew, see `fit_centers`."""
    sums, counts = sums_by_code(vectors, codes, len(centers))
    moved = (sums / counts.clamp(min=1)[:, None]).to(centers.dtype)
    dead = torch.nonzero(counts == 0).flatten()
    if len(dead):
        distances = (vectors - moved[codes]).square().sum(dim=1)
        farthest = distances.argsort(descending=True, stable=True)[: len(dead)]
        farthest = farthest[distances[farthest] > 0]
        moved[dead] = centers[dead]
        moved[dead[: len(farthest)]] = vectors[farthest]
    return moved
