"""Fitting codebooks on a sample of vectors, and coding all of them a block at a time.

Notation: n items, D width, L levels, V_l codes of level l.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from prismrec.config import UserError
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.semantic import Codes
from prismrec.data.semantic.codebooks import Codebooks, Method
from prismrec.data.semantic.report import collisions, prefix_cosines, usage
from prismrec.data.semantic.residual import fit_levels
from prismrec.data.semantic.rq_vae import VaeShape, VaeTraining, fit_vae
from prismrec.data.semantic.vectors import ItemVectors
from prismrec.data.write import Progress

SAMPLE_PER_CODE = 256
"""Vectors for each code of the largest level that k-means sees; more change its centers little."""
VAE_SAMPLE = 1_000_000
COSINE_SAMPLE = 65_536
"""Vectors of which the cosines within prefixes are taken."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How codebooks are fitted.

    Args:
        method: `rq_kmeans`, k-means on the residuals of each level; `rq_vae`, a trained encoder.
        sizes: (L,) codes of every level, at least 2 each.
        seed: of everything drawn.
        sample: vectors that are drawn to fit on; 256 for each code of the largest level, for
            `rq_vae` a million, if not given.
        iterations: of k-means, at most, for each level.
        hidden: widths of the hidden layers of `rq_vae`.
        latent: width of what `rq_vae` quantises.
        training: of `rq_vae`.
        device: where it is fitted, `cpu` or `cuda`.
    """

    method: Method = "rq_kmeans"
    sizes: tuple[int, ...] = (256, 256, 256)
    seed: int = 1
    sample: int | None = None
    iterations: int = 50
    hidden: tuple[int, ...] = (512, 256, 128)
    latent: int = 32
    training: VaeTraining = field(default_factory=VaeTraining)
    device: str = "cpu"

    @property
    def sample_rows(self) -> int:
        """Vectors to fit on, where there are so many."""
        if self.sample is not None:
            return self.sample
        return VAE_SAMPLE if self.method == "rq_vae" else SAMPLE_PER_CODE * max(self.sizes)


def fit_codebooks(vectors: ItemVectors, fit: Fit, progress: Progress | None = None) -> Codebooks:
    """Fit codebooks; the same vectors and arguments give the same ones on the same machine.

    Memory is that of the sample.

    Args:
        vectors: of items.
        fit: how.
        progress: called after each level or step with how many are done and how many there are.

    Raises:
        UserError: there are fewer vectors than codes of a level, or sizes or device that cannot be.
    """
    _check(vectors, fit)
    given = torch.from_numpy(vectors.drawn(fit.sample_rows, fit.seed)).to(fit.device)
    is_vae = fit.method == "rq_vae"
    counter = _Counter(fit.training.steps if is_vae else len(fit.sizes), progress)
    if is_vae:
        shape = VaeShape(vectors.width, fit.sizes, fit.hidden, fit.latent)
        return Codebooks(fit_vae(given, shape, fit.training, fit.seed, counter.done))
    generator = torch.Generator().manual_seed(fit.seed)
    return Codebooks(fit_levels(given, fit.sizes, generator, fit.iterations, counter.done))


def code_all(
    vectors: ItemVectors, codebooks: Codebooks, progress: Progress | None = None
) -> tuple[Ints, Codes, dict[str, Any]]:
    """Code every item, a block at a time.

    Args:
        vectors: of items, as wide as those the codebooks were fitted on.
        codebooks: what codes them.
        progress: called after each block with how many items are coded and how many there are.

    Returns:
        (n,) ids, (n, L) codes and the report: `items`, `levels` (see `usage`, and for each level
        `residual`, the mean square that is left over as a share of the whole, and `cosine` of items
        that share the codes so far), `cosine` of any two items, `error`, the mean squared distance
        between a vector and what its codes stand for as a share of its mean square, and `collisions`.

    Raises:
        UserError: the vectors are of another width.
    """
    if vectors.width != codebooks.width:
        raise UserError(
            f"{vectors.path}: vectors of {vectors.width} numbers, but the codebooks code vectors of "
            f"{codebooks.width}; give the vectors that they were fitted on, or fit anew"
        )
    ids, codes = (
        np.empty(vectors.num_rows, np.int64),
        np.empty((vectors.num_rows, len(codebooks.sizes)), np.int32),
    )
    squares = np.zeros(len(codebooks.sizes) + 1)
    whole = error = 0.0
    first = 0
    for of_block, block in vectors.blocks():
        coded = codebooks.code(block)
        stop = first + len(of_block)
        ids[first:stop], codes[first:stop] = of_block, coded.codes
        squares += coded.squares.sum(axis=0)
        whole += float(coded.vector_squares.sum())
        error += float(coded.errors.sum())
        first = stop
        if progress is not None:
            progress(first, vectors.num_rows)
    left = (squares[1:] / squares[0] if squares[0] else squares[1:]).tolist()
    report = _report(vectors, codebooks, codes, left)
    return ids, codes, report | {"error": error / whole if whole else 0.0}


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._count = total, progress, 0

    def done(self) -> None:
        self._count += 1
        if self._progress is not None:
            self._progress(self._count, self._total)


def _report(
    vectors: ItemVectors, codebooks: Codebooks, codes: Codes, left: list[float]
) -> dict[str, Any]:
    drawn = vectors.drawn(COSINE_SAMPLE, 0)
    cosines = prefix_cosines(drawn, codebooks.code(drawn).codes, codebooks.sizes)
    levels = [
        {"level": level, **usage(codes[:, level], size), "residual": left[level]}
        | {"cosine": cosines[level + 1]}
        for level, size in enumerate(codebooks.sizes)
    ]
    return {
        "items": len(codes),
        "levels": levels,
        "cosine": cosines[0],
        "collisions": collisions(codes, codebooks.sizes),
    }


def _check(vectors: ItemVectors, fit: Fit) -> None:
    if not fit.sizes or min(fit.sizes) < 2:
        raise UserError(f"codes: every level needs at least 2, got {list(fit.sizes)}")
    fewest = min(vectors.num_rows, fit.sample_rows)
    if fewest < max(fit.sizes):
        raise UserError(
            f"{vectors.path}: {fewest} vectors cannot be parted into {max(fit.sizes)} codes; use at "
            f"most {fewest} codes a level, or more vectors"
        )
    if fit.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: there is no CUDA device here; use 'cpu'")
