"""Losses of a row joined with losses of the batch, against numbers written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismrec.config import ConfigError
from prismrec.config.models.single import DeepFM
from prismrec.models import Fields, Inputs, build_model
from prismrec.models.objectives import Decoder, Objective, Targets, TaskLoss, build_objective
from prismrec.models.objectives.losses import (
    BatchLoss,
    Focal,
    Generative,
    ListNet,
    RankNet,
    Rcr,
    binary_cross_entropy,
)
from prismrec.models.objectives.ranking import Rows, generative_loss
from tests.helpers.runs import make_recipe
from tests.unit.models.vectors import assert_close

Z = torch.tensor([[-2], [-1], [-4], [-3], [-2.5]], dtype=torch.float64)
Y = torch.tensor([[1], [1], [0], [0], [0]], dtype=torch.float64)
ONES = torch.ones_like(Z)
BATCH_LOSSES: dict[str, BatchLoss] = {
    "ranknet": RankNet(),
    "list": ListNet(),
    "rcr": Rcr(),
    "generative": Generative(),
}


def combined(name: str, alpha: float) -> Objective:
    """One task with a cross-entropy and a loss of the batch."""
    loss = TaskLoss(of_batch=BATCH_LOSSES[name], alpha=alpha, has_level=name == "generative")
    return Objective([loss], [1.0])


@pytest.mark.parametrize(
    ("name", "alpha", "expected"),
    [
        ("ranknet", 0.5, 0.4661812815),
        ("ranknet", 0.9, 0.6669669303),
        ("list", 0.5, (0.7171633425 + 1.0744379396) / 2),
        ("rcr", 0.5, (0.7171633425 + 1.0841114505) / 2),
    ],
)
def test_cross_entropy_and_a_loss_of_the_batch(name: str, alpha: float, expected: float) -> None:
    objective = combined(name, alpha)
    total, losses = objective(Z, Targets(Y, ONES, ONES))
    assert total.item() == pytest.approx(expected, abs=2e-8)  # alpha is a float32
    assert losses.per_task.tolist() == pytest.approx([expected], abs=2e-8)
    assert objective.parts == [(0, "bce"), (0, name)]
    bce, of_batch = losses.parts.tolist()
    assert bce == pytest.approx(0.7171633425, abs=2e-10)
    assert alpha * bce + (1 - alpha) * of_batch == pytest.approx(expected, abs=1e-8)


def test_gradient_of_cross_entropy_and_pairs() -> None:
    z = Z.clone().requires_grad_()
    combined("ranknet", 0.5)(z, Targets(Y, ONES, ONES))[0].backward()
    bce = [-0.1761594156, -0.1462117157, 0.0035972420, 0.0094851746, 0.0151716360]
    pairs = [-0.1276141687, -0.0581757198, 0.0277714659, 0.0646907239, 0.0933276988]
    assert_close(z.grad[:, 0], [(a + b) / 2 for a, b in zip(bce, pairs, strict=True)], 1e-8)


JRC_LEVEL = torch.tensor([0.2, 0, 0.5], dtype=torch.float64)
JRC_FIRST = torch.tensor([1, -1, -0.5], dtype=torch.float64)
JRC_Y = torch.tensor([1, 0, 0], dtype=torch.float64)


def jrc_rows() -> Rows:
    return Rows(JRC_FIRST - JRC_LEVEL, JRC_Y, torch.ones(3).double(), None, JRC_LEVEL)


def test_jrc_by_hand() -> None:
    columns = torch.stack([JRC_FIRST, JRC_LEVEL], 1)
    logits, levels = Decoder([True])(columns)
    ones = torch.ones(3, 1, dtype=torch.float64)
    targets = Targets(JRC_Y.unsqueeze(1), ones, ones)
    total, losses = combined("generative", 0.5)(logits, targets, levels)
    assert losses.parts.tolist() == pytest.approx([0.3325413470, 0.8376429410], abs=2e-10)
    assert total.item() == pytest.approx(0.5850921440, abs=1e-8)
    alone = generative_loss(jrc_rows(), excludes_same_label=True)
    assert alone.item() == pytest.approx(0.5529499420, abs=2e-10)


def plain_generative(
    z0: Tensor, z1: Tensor, y: Tensor, w: Tensor, g: Tensor | None, *, excludes: bool
) -> Tensor:
    """The formula, row by row."""
    total = z0.sum() * 0
    for i in range(len(y)):
        scores = z1 if y[i] > 0.5 else z0
        context = [
            scores[k].exp()
            for k in range(len(y))
            if w[k] > 0
            and (g is None or g[k] == g[i])
            and not (excludes and k != i and y[k] == y[i])
        ]
        if w[i] > 0:
            total = total - w[i] * torch.log(scores[i].exp() / sum(context))
    return total / w.sum() if w.sum() > 0 else total


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    groups=st.sampled_from([0, 1, 3]),
    excludes=st.booleans(),
)
def test_jrc_equals_the_loop(seed: int, count: int, groups: int, excludes: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = torch.randn(2, count, dtype=torch.float64, generator=generator).unbind()
    y = torch.randint(0, 2, (count,), generator=generator).double()
    w = torch.randint(0, 3, (count,), generator=generator).double()
    g = torch.randint(0, groups, (count,), generator=generator) * 7 - 3 if groups else None
    ours = [z.clone().requires_grad_() for z in (z0, z1)]
    theirs = [z.clone().requires_grad_() for z in (z0, z1)]
    loss = generative_loss(Rows(ours[1] - ours[0], y, w, g, ours[0]), excludes_same_label=excludes)
    expected = plain_generative(*theirs, y, w, g, excludes=excludes)
    assert_close(loss.detach(), expected.detach())
    loss.backward()
    expected.backward()
    for mine, plain in zip(ours, theirs, strict=True):
        zero = torch.zeros_like(plain)  # a logit that no label asks for is not in the loop's graph
        assert_close(mine.grad, zero if plain.grad is None else plain.grad)


def test_jrc_stands_large_logits() -> None:
    level = torch.tensor([500.0, -500.0, 0.0]).requires_grad_()
    loss = generative_loss(Rows(2 * level, JRC_Y.float(), torch.ones(3), None, level))
    loss.backward()
    assert loss.isfinite()
    assert level.grad.isfinite().all()


def test_the_decoder_takes_levels_off() -> None:
    columns = torch.tensor([[1.0, 2.0, 3.0, 0.5, -4.0]])
    logits, levels = Decoder([True, False, True])(columns)
    assert (logits.tolist(), levels.tolist()) == ([[0.5, 2.0, 7.0]], [[0.5, -4.0]])
    same, none = Decoder([False, False])(columns[:, :2])
    assert (same.tolist(), none) == ([[1.0, 2.0]], None)
    with pytest.raises(ValueError, match="2 tasks, 1 of them with a level, gives 3 columns, got 5"):
        Decoder([True, False])(columns)


def test_focal() -> None:
    z, y = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.0]).double()
    p = torch.sigmoid(z)
    expected = [
        -0.25 * (1 - p[0]) ** 2 * torch.log(p[0]),
        -0.75 * p[1] ** 2 * torch.log(1 - p[1]),
    ]
    assert_close(Focal(2.0, 0.25)(z, y), torch.stack(expected))
    assert_close(Focal(0.0)(z, y), binary_cross_entropy(z, y))
    far = torch.tensor([80.0, -80.0], requires_grad=True)
    Focal(0.5)(far, y.float()).sum().backward()
    assert far.grad.isfinite().all()


def test_focal_takes_gradient_from_negatives_and_pairs_give_them_some() -> None:
    """All positives below 0: pairs push negatives harder than a cross-entropy, focal less."""
    pushed = {}
    for name, objective in (
        ("bce", Objective([TaskLoss()], [1.0])),
        ("pairs", combined("ranknet", 0.5)),
        ("focal", Objective([TaskLoss(Focal(2.0))], [1.0])),
    ):
        z = Z.clone().requires_grad_()
        objective(z, Targets(Y, ONES, ONES))[0].backward()
        pushed[name] = z.grad[2:, 0]
    assert (pushed["pairs"] / pushed["bce"] > 1).all()
    assert (pushed["focal"] / pushed["bce"] < 1).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ranknet", [0.2, 0.6]), ("list", [0.2551, 0.5449]), ("rcr", [0.2, 0.6])],
)
def test_best_probabilities_beside_a_loss_of_the_batch(name: str, expected: list[float]) -> None:
    """Two cells of ten rows with the rates .2 and .6, fitted to the end."""
    cells = torch.tensor([0] * 10 + [1] * 10)
    labels = torch.tensor([1.0] * 2 + [0] * 8 + [1] * 6 + [0] * 4, dtype=torch.float64)
    ones = torch.ones(20, 1, dtype=torch.float64)
    free = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        targets = Targets(labels.unsqueeze(1), ones, ones)
        loss: Tensor = combined(name, 0.5)(free[cells], targets)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.sigmoid(free[:, 0]).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", BATCH_LOSSES)
@pytest.mark.parametrize("labels", ["no positive", "no negative", "no row"])
def test_a_batch_with_nothing_to_compare(name: str, labels: str) -> None:
    z = torch.tensor([[1.0], [2.0]], requires_grad=True)
    levels = torch.zeros(2, 1, requires_grad=True)
    y = torch.ones(2, 1) if labels == "no negative" else torch.zeros(2, 1)
    valid = torch.zeros(2, 1) if labels == "no row" else torch.ones(2, 1)
    total, losses = combined(name, 0.25)(z, Targets(y, valid, torch.ones(2, 1)), levels)
    total.backward()
    assert z.grad.isfinite().all()
    bce, of_batch = losses.parts.tolist()
    if labels == "no row":
        assert (total.item(), z.grad.abs().max().item()) == (0, 0)
    else:
        assert bce > 0
    if labels == "no positive" and name != "generative":
        assert of_batch == 0
        only_bce = torch.sigmoid(z.detach()) / 2 * 0.25
        torch.testing.assert_close(z.grad, only_bce)


def test_groups_masks_and_weights_reach_the_pairs() -> None:
    z = torch.tensor([[1, 0.5, 0.2, 0.8, 0.3, 9.0]], dtype=torch.float64).t()
    y = torch.tensor([[1, 0, 0, 1, 0, math.nan]], dtype=torch.float64).t()
    valid = torch.tensor([[1.0, 1, 1, 1, 1, 0]]).t()
    group = torch.tensor([0, 0, 0, 1, 1, 0])
    for reduction, expected in (("pair_mean", 0.4397515447), ("group_mean", 0.4483329046)):
        loss = TaskLoss(of_batch=RankNet(reduction), alpha=0.0, is_grouped=True)
        objective = Objective([loss], [1.0])
        total, _ = objective(z, Targets(y, valid, torch.ones(6, 1), group=group))
        assert total.item() == pytest.approx(expected, abs=2e-10)
    with pytest.raises(ValueError, match=r"compares rows of a group, but targets\.group is None"):
        objective(z, Targets(y, valid, torch.ones(6, 1)))
    weights = torch.tensor([[1, 0.5, 1, 2, 1]], dtype=torch.float64).t()
    total, _ = combined("ranknet", 0.0)(Z, Targets(Y, ONES, weights))
    assert total.item() == pytest.approx(0.2465761160, abs=2e-10)


def test_positives_weigh_what_is_asked() -> None:
    objective = Objective([TaskLoss(pos_weight=3.0)], [1.0])
    logits, labels, ones = torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.ones(2, 1)
    logits[1] = 2.0
    total, losses = objective(logits, Targets(labels, ones, ones))
    assert total.item() == pytest.approx((3 * 0.6931472 + 2.1269280) / 4, abs=1e-6)
    assert losses.weights.tolist() == [[3.0], [1.0]]


def test_every_task_has_its_own_loss_and_level() -> None:
    """Four tasks, two with a level: together what each is alone."""
    torch.manual_seed(2)
    kinds = ("generative", "ranknet", "generative", "bce")
    losses = [
        TaskLoss()
        if kind == "bce"
        else TaskLoss(of_batch=BATCH_LOSSES[kind], alpha=0.3, has_level=kind == "generative")
        for kind in kinds
    ]
    z, levels = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    y = torch.randint(0, 2, (9, 4)).double()
    valid, weights = torch.randint(0, 2, (9, 4)), torch.rand(9, 4, dtype=torch.float64)
    together, found = Objective(losses, [1.0, 0.5, 2.0, 0.25])(
        z, Targets(y, valid, weights), levels
    )
    expected = []
    for t, loss in enumerate(losses):
        one = slice(t, t + 1)
        level = {0: levels[:, :1], 2: levels[:, 1:]}.get(t)
        targets = Targets(y[:, one], valid[:, one], weights[:, one])
        expected.append(Objective([loss], [1.0])(z[:, one], targets, level)[0].item())
    assert found.per_task.tolist() == pytest.approx(expected, abs=1e-7)
    scale = [1.0, 0.5, 2.0, 0.25]
    assert together.item() == pytest.approx(
        sum(a * b for a, b in zip(expected, scale, strict=True)), abs=1e-7
    )


def test_a_recipe_names_losses() -> None:
    recipe = make_recipe(
        Path("nowhere"),
        "tasks=[{name='click', label='click', pos_weight=4.0, negative_rate=0.5, loss={name="
        "'bce_ranknet', alpha=0.7, group=true, reduction='group_mean', weighted=false}}, {name='a',"
        " label='buy', loss={name='jrc', exclude_same_label=true}}, {name='b', label='buy', "
        "loss='bce_rcr'}, {name='c', label='buy', loss={name='bce'}}, {name='d', label='buy', "
        "loss={name='focal', gamma=1.0}}, {name='e', label='buy', loss={name='bce_list'}}]",
    )
    objective = build_objective(recipe, 0)
    expected = [
        TaskLoss(of_batch=RankNet("group_mean", False), alpha=0.7, is_grouped=True, pos_weight=4.0),
        TaskLoss(of_batch=Generative(True), alpha=0.5, has_level=True),
        TaskLoss(of_batch=Rcr(), alpha=0.9),
    ]
    assert [loss for _, loss in objective._of_batch[:3]] == expected
    assert [row for row, _ in objective._runs] == [
        binary_cross_entropy,
        Focal(1.0),
        binary_cross_entropy,
    ]
    assert recipe.tasks[3].loss == "bce"
    assert recipe.tasks[0].logit_offset == pytest.approx(math.log(0.5 / 4))
    assert recipe.num_logits == 7


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("'bec'", r"tasks\[0\]\.loss: unknown loss 'bec'; did you mean 'bce'\?"),
        ("{alpha=0.5}", r"tasks\[0\]\.loss: needs a name; known: 'bce', 'bce_list'"),
        ("{name='bce', alpha=0.5}", "'bce' has no settings"),
        ("{name='bce_list', alpha=1.5}", r"tasks\[0\]\.loss\.alpha: must be <= 1\.0, got 1\.5"),
        ("{name='jrc', gruop=true}", r"tasks\[0\]\.loss\.gruop: unknown key; did you mean 'group'"),
        ("{name='bce_ranknet', group=true}", r"features\.group: tasks\[0\]\.loss\.group = true"),
    ],
)
def test_a_recipe_with_a_wrong_loss(loss: str, message: str) -> None:
    features = "features={sparse=['user'], dense=['x']}"
    with pytest.raises(ConfigError, match=message):
        make_recipe(
            Path("nowhere"), features, f"tasks=[{{name='click', label='click', loss={loss}}}]"
        )


def test_every_weight_gets_a_gradient_without_a_row_that_counts() -> None:
    """A step in which one task with a level has no valid row, nor the other a positive."""
    fields = Fields(3, 2, (4, 4), 4, (3, 3))
    section = DeepFM(name="deepfm", hidden=(4, 4), merge="gate")
    model = build_model(section, fields)
    inputs = Inputs(
        [torch.randn(5, 3, 4), torch.randn(5, 3, 4)], torch.randn(5, 3, 4), torch.randn(5, 2)
    )
    logits, levels = Decoder([True, True])(model(inputs)[0])
    loss = TaskLoss(of_batch=Generative(), alpha=0.5, has_level=True)
    valid = torch.tensor([[0.0, 1.0]]).expand(5, 2)
    targets = Targets(torch.zeros(5, 2), valid, torch.ones(5, 2))
    total, _ = Objective([loss, loss], [1.0, 1.0])(logits, targets, levels)
    total.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


def test_cross_entropy_is_torchs() -> None:
    expected = F.binary_cross_entropy_with_logits(Z, Y)
    assert_close(Objective([TaskLoss()], [1.0])(Z, Targets(Y, ONES, ONES))[0], expected)
