"""RQ-VAE: an encoder whose output is quantised level by level, and a decoder of the sum.

Source: Lee et al., "Autoregressive image generation using residual quantization", CVPR 2022; as semantic
ids, Rajput et al., "Recommender systems with generative retrieval", NeurIPS 2023.

Notation: B vectors of a batch, D width of the vectors, d width of the latent, L levels, V_l codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prismrec.data.semantic.kmeans import nearest, sums_by_code
from prismrec.data.semantic.residual import Done, fit_levels

_FIRST_ROWS_PER_CODE = 64
_FIRST_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class VaeShape:
    """What an RQ-VAE is made of.

    Args:
        width: D.
        sizes: (L,) codes of every level.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        latent: d.
    """

    width: int
    sizes: tuple[int, ...]
    hidden: tuple[int, ...] = (512, 256, 128)
    latent: int = 32


@dataclass(frozen=True, slots=True)
class VaeTraining:
    """How an RQ-VAE is trained.

    Args:
        steps: batches.
        batch_size: B.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        commitment: beta, weight of |r_l - SG(q_l)|^2.
        codebook: `ema`, centers are moving means of their residuals; `gradient`, they descend
            |SG(r_l) - q_l|^2.
        decay: g of the moving means, and of the counts that find dead codes.
        dead_below: a code begins anew where its moving count is below this share of an even part of
            the batch, B / V_l; 0 for never.
        estimator: how the decoder's gradient reaches the encoder: `straight_through`, as it is;
            `rotation`, turned and scaled from the quantised sum's direction to the latent's.
    """

    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    commitment: float = 0.25
    codebook: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    dead_below: float = 0.1
    estimator: Literal["straight_through", "rotation"] = "straight_through"


class MovingCodebook(nn.Module):
    """One level's centers, and moving counts and sums of the residuals that they stand for.

    Args:
        size: V.
        width: d.
        decay: g: what a count or sum keeps of itself in a step.
        eps: keeps the smoothed count of an unused code above zero.
    """

    centers: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, width: int, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        self.decay, self.eps = decay, eps
        self.register_buffer("centers", torch.zeros(size, width))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, width))

    def begin(self, centers: Tensor, count: float) -> None:
        """Start from centers as if each had stood for `count` residuals."""
        self.centers.copy_(centers)
        self.counts.fill_(count)
        self.sums.copy_(centers * count)

    def count(self, residuals: Tensor, codes: Tensor) -> None:
        """Let the counts and sums follow a batch; the centers stay."""
        sums, counts = sums_by_code(residuals, codes, len(self.counts))
        self.counts.lerp_(counts.to(self.counts), 1 - self.decay)
        self.sums.lerp_(sums.to(self.sums), 1 - self.decay)

    def move(self) -> None:
        """Centers become the moving means: C = sum / laplace(count).

        laplace(n_j) = (n_j + eps) / (N + V eps) N for N = sum of the n_j: an unused code moves to zero
        instead of dividing by it, unless it is restarted.
        """
        total = self.counts.sum()
        smooth = (self.counts + self.eps) / (total + len(self.counts) * self.eps) * total
        self.centers.copy_(self.sums / smooth[:, None])

    def restart(self, residuals: Tensor, least: float, generator: torch.Generator) -> int:
        """Let codes of a moving count below `least` begin anew at drawn residuals, as if seen so often.

        Where there are fewer residuals than such codes they are drawn again, moved by a little
        noise.

        Returns:
            How many there were.
        """
        dead = torch.nonzero(self.counts < least).flatten()
        if not len(dead):
            return 0
        rows = torch.randperm(len(residuals), generator=generator)
        rows = rows.repeat(-(-len(dead) // len(rows)))[: len(dead)]
        begun = residuals[rows.to(residuals.device)]
        if len(dead) > len(residuals):
            noise = torch.randn(begun.shape, generator=generator).to(begun)
            begun = begun + noise * (0.01 / begun.shape[1] ** 0.5)
        self.centers[dead] = begun
        self.counts[dead] = least
        self.sums[dead] = begun * least
        return len(dead)


class RqVae(nn.Module):
    """Encoder, codebooks and decoder. Vectors are moved and scaled to mean 0 and mean square 1 first.

    Args:
        shape: widths and sizes.
        decay: of the moving means.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: VaeShape, decay: float = 0.99) -> None:
        super().__init__()
        self.shape = shape
        widths = (shape.width, *shape.hidden, shape.latent)
        self.encoder = _layers(widths)
        self.decoder = _layers(widths[::-1])
        self.books = nn.ModuleList(
            MovingCodebook(size, shape.latent, decay) for size in shape.sizes
        )
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("scale", torch.ones(()))

    @property
    def levels(self) -> list[MovingCodebook]:
        """The codebook of every level."""
        return [cast(MovingCodebook, book) for book in self.books]

    @property
    def codebooks(self) -> list[Tensor]:
        """(V_l, d) centers of every level."""
        return [book.centers for book in self.levels]

    def latent(self, vectors: Tensor) -> Tensor:
        """(B, d) what is quantised, of (B, D) vectors."""
        return self.encoder((vectors - self.mean) / self.scale)  # type: ignore[no-any-return]

    def reconstructed(self, latent: Tensor) -> Tensor:
        """(B, D) vectors of (B, d)."""
        return self.decoder(latent) * self.scale + self.mean  # type: ignore[no-any-return]


def quantised(
    latent: Tensor, codebooks: Sequence[Tensor], estimator: str, commitment: float
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """The quantised sum with a gradient for the latent, and the losses of the codebooks.

    A residual goes on with its center detached, so that no level moves the centers of those before.

    Args:
        latent: (B, d).
        codebooks: (V_l, d); where they take gradients, |SG(r_l) - q_l|^2 is part of the loss.
        estimator: see `VaeTraining`.
        commitment: beta.

    Returns:
        (B, d) sum of the centers; the loss, a mean over the batch; and for every level its
        residuals (B, d), detached, and codes (B,).
    """
    residual, total = latent, torch.zeros_like(latent)
    loss, levels = latent.new_zeros(()), []
    for book in codebooks:
        codes = nearest(residual.detach(), book.detach())
        center = book[codes]
        levels.append((residual.detach(), codes))
        loss = loss + commitment * (residual - center.detach()).square().sum(dim=1).mean()
        if book.requires_grad:
            loss = loss + (residual.detach() - center).square().sum(dim=1).mean()
        total = total + center.detach()
        residual = residual - center.detach()
    if estimator == "rotation":
        return rotated(latent, total), loss, levels
    return latent + (total - latent).detach(), loss, levels


def rotated(latent: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """(B, d) `target`, whose gradient reaches `latent` turned as the one was turned into the other.

    q~ = SG(|q| / |e|) (e - 2 (e.w) w + 2 (e.e^) q^) with w = (e^ + q^) / |e^ + q^|.

    Source: Fifty et al., "Restructuring vector quantization with the rotation trick", arXiv:2410.06424.

    Args:
        latent: e, (B, d).
        target: q, (B, d).
        eps: keeps opposite or zero vectors from dividing by zero.
    """
    e, q = latent.detach(), target.detach()
    long_e, long_q = (each.norm(dim=1, keepdim=True).clamp(min=eps) for each in (e, q))
    to_e, to_q = e / long_e, q / long_q
    between = to_e + to_q
    w = between / between.norm(dim=1, keepdim=True).clamp(min=eps)
    along_w = (latent * w).sum(dim=1, keepdim=True)
    along_e = (latent * to_e).sum(dim=1, keepdim=True)
    return (long_q / long_e) * (latent - 2 * along_w * w + 2 * along_e * to_q)


def fit_vae(
    vectors: Tensor, shape: VaeShape, training: VaeTraining, seed: int, done: Done | None = None
) -> RqVae:
    """Train an RQ-VAE; the same arguments give the same weights.

    The codebooks begin at k-means of the first latents. Batches are the vectors in a drawn order,
    and in another one when these are used up.

    Args:
        vectors: (n, D), n at least the largest size.
        shape: of the model.
        training: steps and losses.
        seed: of everything drawn.
        done: called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RqVae(shape, training.decay).to(vectors.device)
    model.mean.copy_(vectors.mean(dim=0))
    model.scale.copy_((vectors - model.mean).square().mean().sqrt().clamp(min=1e-12))
    batch_size = min(training.batch_size, len(vectors))
    _begin(model, vectors, batch_size, generator)
    trained = list(model.encoder.parameters()) + list(model.decoder.parameters())
    if training.codebook == "gradient":
        trained += [_as_parameter(book) for book in model.levels]
    optimizer = torch.optim.AdamW(
        trained, training.learning_rate, weight_decay=training.weight_decay
    )
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(training.steps):
        if len(order) < batch_size:
            order = torch.randperm(len(vectors), generator=generator)
        batch, order = vectors[order[:batch_size].to(vectors.device)], order[batch_size:]
        levels = _step(model, batch, training, optimizer)
        _follow(model, levels, training, generator)
        if done is not None:
            done()
    return model.requires_grad_(False)


def _step(
    model: RqVae, batch: Tensor, training: VaeTraining, optimizer: torch.optim.Optimizer
) -> list[tuple[Tensor, Tensor]]:
    """One step of encoder and decoder (and of centers that take gradients); what each level coded."""
    scaled = (batch - model.mean) / model.scale
    latent = model.encoder(scaled)
    total, loss, levels = quantised(
        latent, model.codebooks, training.estimator, training.commitment
    )
    loss = loss + (model.decoder(total) - scaled).square().sum(dim=1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(
        [p for g in optimizer.param_groups for p in g["params"]], training.clip
    )
    optimizer.step()
    return levels


@torch.no_grad()
def _follow(
    model: RqVae,
    levels: Sequence[tuple[Tensor, Tensor]],
    training: VaeTraining,
    generator: torch.Generator,
) -> None:
    """Moving counts, moving means, and new beginnings of dead codes."""
    for book, (residuals, codes) in zip(model.levels, levels, strict=True):
        book.count(residuals, codes)
        if training.codebook == "ema":
            book.move()
        least = training.dead_below * len(residuals) / len(book.counts)
        if least > 0:
            book.restart(residuals, least, generator)


@torch.no_grad()
def _begin(model: RqVae, vectors: Tensor, batch_size: int, generator: torch.Generator) -> None:
    """Codebooks by k-means of the untrained encoder's outputs."""
    most = min(len(vectors), _FIRST_ROWS_PER_CODE * max(model.shape.sizes))
    rows = torch.randperm(len(vectors), generator=generator)[:most]
    latent = model.latent(vectors[rows.to(vectors.device)])
    centers = fit_levels(latent, model.shape.sizes, generator, _FIRST_ITERATIONS)
    for book, of_level in zip(model.levels, centers, strict=True):
        book.begin(of_level, batch_size / len(of_level))


def _as_parameter(book: MovingCodebook) -> nn.Parameter:
    """The centers of a book, from now on a parameter that an optimizer may step."""
    centers = nn.Parameter(book.centers)
    del book.centers
    book.centers = centers
    return centers


def _layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
