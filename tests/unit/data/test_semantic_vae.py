"""RQ-VAE: where gradients go, moving means, restarts, the rotation, and that a fit learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from prismrec.data.semantic.kmeans import moved_centers, nearest
from prismrec.data.semantic.residual import encode
from prismrec.data.semantic.rq_vae import (
    MovingCodebook,
    VaeShape,
    VaeTraining,
    fit_vae,
    quantised,
    rotated,
)
from tests.unit.data.test_semantic_fit import BOOKS, INPUTS, drawn, seeded


def learnt(books: list[Tensor]) -> list[Tensor]:
    return [book.clone().requires_grad_(True) for book in books]


def test_codes_and_losses_by_hand() -> None:
    """Squared residuals after each level are section 5.8's: beta of their mean, once more for codebooks."""
    latent = INPUTS.clone().requires_grad_(True)
    total, loss, levels = quantised(latent, BOOKS, "straight_through", 0.25)
    assert torch.stack([codes for _, codes in levels], 1).tolist() == [
        [0, 2, 3],
        [3, 3, 1],
        [0, 2, 3],
        [1, 1, 2],
    ]
    after = encode(INPUTS, BOOKS)[1][:, 1:].sum(dim=1).mean().item()
    assert after == pytest.approx((0.11640625 + 0.07265625 + 0.91640625 + 0.06640625) / 4)
    assert loss.item() == pytest.approx(0.25 * after)
    assert quantised(latent, learnt(BOOKS), "straight_through", 0.25)[1].item() == pytest.approx(
        1.25 * after
    )
    assert total[0].tolist() == [1 - 0.0625, 0.25]


def test_the_sum_passes_its_gradient_to_the_latent_and_none_to_the_centers() -> None:
    latent, books = INPUTS.clone().requires_grad_(True), learnt(BOOKS)
    total, _, _ = quantised(latent, books, "straight_through", 0.25)
    weights = drawn(4, 2).double()
    (total * weights).sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, weights)
    assert all(book.grad is None or not book.grad.any() for book in books)


def test_each_level_moves_its_own_centers_only() -> None:
    """d/dC of |SG(r) - C[c]|^2 / B is 2 (C[c] - r) / B summed over the items of a code."""
    latent, books = INPUTS.clone().requires_grad_(True), learnt(BOOKS)
    _, loss, levels = quantised(latent, books, "straight_through", 0.25)
    loss.backward()
    for book, (residuals, codes) in zip(books, levels, strict=True):
        expected = torch.zeros_like(book)
        expected.index_add_(0, codes, 2 * (book.detach()[codes] - residuals) / 4)
        torch.testing.assert_close(book.grad, expected)
    assert latent.grad is not None
    commitment = sum(2 * (r - b.detach()[c]) for b, (r, c) in zip(books, levels, strict=True))
    torch.testing.assert_close(latent.grad, 0.25 * commitment / 4)


def test_moving_centers_take_no_gradient() -> None:
    latent = INPUTS.clone().requires_grad_(True)
    _, loss, _ = quantised(latent, BOOKS, "straight_through", 0.0)
    assert loss.item() == 0
    assert not any(book.requires_grad for book in BOOKS)


def test_a_moving_mean_by_hand() -> None:
    book = MovingCodebook(2, 1, decay=0.5, eps=0.0)
    book.begin(torch.tensor([[1.0], [5.0]]), count=2.0)
    book.count(torch.tensor([[3.0], [4.0]]), torch.tensor([0, 0]))
    book.move()
    assert book.counts.tolist() == [2.0, 1.0]
    assert book.sums.flatten().tolist() == [0.5 * 2 + 0.5 * 7, 5.0]
    assert book.centers.flatten().tolist() == [2.25, 5.0]  # 4.5 / 2, and 5 / 1: not seen, not moved


def test_counts_are_smoothed_as_laplace_does() -> None:
    book = MovingCodebook(2, 1, decay=0.5, eps=1.0)
    book.begin(torch.tensor([[1.0], [5.0]]), count=2.0)
    book.move()
    smooth = (2 + 1) / (4 + 2) * 4
    assert book.centers.flatten().tolist() == pytest.approx([2 / smooth, 10 / smooth])


def test_without_memory_a_moving_mean_is_a_step_of_k_means() -> None:
    vectors = drawn(200, 3)
    centers = drawn(6, 3, 1)
    book = MovingCodebook(6, 3, decay=0.0, eps=1e-9)
    book.begin(centers, 1.0)
    codes = nearest(vectors, centers)
    book.count(vectors, codes)
    book.move()
    torch.testing.assert_close(book.centers, moved_centers(vectors, codes, centers))


def test_many_batches_of_the_same_come_to_their_mean() -> None:
    """With codes held, the moving mean converges to the mean of each code's vectors."""
    vectors, book = drawn(64, 2), MovingCodebook(4, 2, decay=0.9, eps=1e-9)
    codes = torch.arange(64) % 4
    book.begin(drawn(4, 2, 3), 16.0)
    for _ in range(300):
        book.count(vectors, codes)
        book.move()
    torch.testing.assert_close(book.centers, vectors.view(16, 4, 2).mean(dim=0))


def test_dead_codes_begin_anew_at_residuals() -> None:
    residuals = drawn(50, 3)
    book = MovingCodebook(4, 3)
    book.begin(torch.zeros(4, 3), 10.0)
    book.counts[1], book.counts[3] = 0.5, 1.9
    assert book.restart(residuals, 2.0, seeded(0)) == 2
    assert book.counts.tolist() == [10, 2, 10, 2]
    assert not book.centers[[0, 2]].any()
    for code in (1, 3):
        assert (residuals == book.centers[code]).all(dim=1).sum() == 1
        torch.testing.assert_close(book.sums[code], 2 * book.centers[code])
    assert not torch.equal(book.centers[1], book.centers[3])
    assert book.restart(residuals, 2.0, seeded(0)) == 0


def test_more_dead_codes_than_residuals_begin_apart() -> None:
    book = MovingCodebook(6, 4)
    book.begin(torch.zeros(6, 4), 0.0)
    residuals = 10 * drawn(2, 4)
    assert book.restart(residuals, 1.0, seeded(0)) == 6
    distances = torch.cdist(book.centers, residuals)
    assert (distances.min(dim=1).values < 0.1).all()
    assert len(torch.unique(book.centers, dim=0)) == 6


def test_the_rotation_gives_the_target_and_scales_the_gradient() -> None:
    """Section 5.3: the value is q, the gradient keeps its length times |q| / |e|."""
    latent, target = drawn(40, 5).requires_grad_(True), drawn(40, 5, 1)
    found = rotated(latent, target)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-6)
    weights = drawn(40, 5, 2)
    (found * weights).sum().backward()
    assert latent.grad is not None
    scale = target.norm(dim=1) / latent.detach().norm(dim=1)
    torch.testing.assert_close(latent.grad.norm(dim=1), weights.norm(dim=1) * scale)
    # What lies along q comes back along e: the frame is turned, not only scaled.
    (again,) = torch.autograd.grad((rotated(latent, target) * target).sum(), latent)
    torch.testing.assert_close(
        nn.functional.cosine_similarity(again, latent.detach()), torch.ones(40)
    )


def test_a_turn_by_half_a_circle_stays_finite() -> None:
    latent = torch.tensor([[1.0, 0], [0, 0]], requires_grad=True)
    found = rotated(latent, torch.tensor([[-2.0, 0], [1, 1]]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert latent.grad is not None
    assert torch.isfinite(latent.grad).all()


SHAPE = VaeShape(6, (8, 8), (16,), 4)


def clustered(rows: int = 400) -> Tensor:
    """Six numbers that depend on three."""
    return drawn(rows, 3) @ drawn(3, 6, 1) + 3.0


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_training_lowers_what_is_left_over(codebook: str, estimator: str) -> None:
    vectors, errors = clustered(), []
    for steps in (1, 120):
        training = VaeTraining(
            steps=steps, batch_size=64, learning_rate=1e-2, codebook=codebook, estimator=estimator
        )
        model = fit_vae(vectors, SHAPE, training, 3)
        with torch.inference_mode():
            codes, squares = encode(model.latent(vectors), model.codebooks)
            total = torch.stack([b[c] for b, c in zip(model.codebooks, codes.T, strict=True)]).sum(
                0
            )
            left = (model.reconstructed(total) - vectors).square().mean()
        errors.append(float(left / (vectors - vectors.mean(dim=0)).square().mean()))
        assert all(b < a for a, b in pairwise(squares.mean(dim=0).tolist()))
    assert errors[0] > 0.5
    assert errors[1] < 0.35


def test_a_fit_is_the_same_for_a_seed_and_leaves_the_global_one_alone() -> None:
    vectors, training = clustered(100), VaeTraining(steps=5, batch_size=32)
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    first = fit_vae(vectors, SHAPE, training, 1).state_dict()
    assert torch.equal(torch.rand(1), before)
    again = fit_vae(vectors, SHAPE, training, 1).state_dict()
    other = fit_vae(vectors, SHAPE, training, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


def test_restarts_keep_codes_in_use() -> None:
    """As the latents move away from centers that nobody is near any more, these begin anew."""
    vectors = clustered()
    used = []
    for dead_below in (0.0, 0.1):
        training = VaeTraining(
            steps=80, batch_size=64, learning_rate=2e-2, decay=0.8, dead_below=dead_below
        )
        model = fit_vae(vectors, VaeShape(6, (32,), (16,), 4), training, 3)
        codes = encode(model.latent(vectors), model.codebooks)[0]
        used.append(len(torch.unique(codes)))
    assert used[1] > used[0]
    assert used[1] >= 28


def test_fewer_vectors_than_a_batch_are_trained_on_as_one() -> None:
    vectors = clustered(20)
    model = fit_vae(vectors, SHAPE, VaeTraining(steps=3, batch_size=1024), 1)
    assert encode(model.latent(vectors), model.codebooks)[0].shape == (20, 2)
