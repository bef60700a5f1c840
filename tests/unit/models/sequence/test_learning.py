"""TIM learns what its parts are for, on histories whose effect is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prismrec.embeddings.jagged import newest_first, offsets_of
from prismrec.models.sequence import (
    DARESpec,
    DINSpec,
    Order,
    SequenceSpec,
    TemporalSpec,
    TIMSpec,
    Widths,
)
from prismrec.train.metrics.functions import auc

CATEGORIES, TOP, MOST, WIDTH = 200, 20, 30, 16
TRAIN, TEST, BATCH, EPOCHS = 160_000, 40_000, 1024, 3
FULL = TIMSpec(TemporalSpec("position"))
SPECS: dict[str, SequenceSpec] = {
    "tim": FULL,
    "without encoding": replace(FULL, temporal=TemporalSpec("none")),
    "without attention": replace(FULL, attention=False),
    "without representation": replace(FULL, representation=False),
    "din": DINSpec((16,), "prelu"),
    "dare": DARESpec(TemporalSpec("position", "concat", 8)),
}


class Rows:
    """Histories of categories; one that the target shares counts the more the newer it is."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        zipf = 1 / np.arange(1, CATEGORIES + 1) ** 1.1
        lengths = random.integers(1, MOST + 1, count)
        total = int(lengths.sum())
        favourite = random.integers(0, TOP, count)
        drawn = random.choice(CATEGORIES, total, p=zipf / zipf.sum())
        is_favourite = random.random(total) < 0.25
        category = np.where(is_favourite, np.repeat(favourite, lengths), drawn)
        target = np.where(random.random(count) < 0.5, favourite, random.integers(0, TOP, count))
        self.offsets = offsets_of(torch.from_numpy(lengths))
        positions = newest_first(self.offsets, total).numpy()
        effect = 2 * np.exp(-(positions - 1) / 3) * (category == np.repeat(target, lengths))
        logits = -2 + np.add.reduceat(effect, self.offsets[:-1].numpy())
        self.label = (random.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        self.category, self.target = torch.from_numpy(category), torch.from_numpy(target)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Order, Tensor]:
        """Categories of behaviours and targets of some rows, where they lie, and the labels."""
        lengths = self.offsets.diff()[rows]
        offsets = offsets_of(lengths)
        start = self.offsets[rows].repeat_interleave(lengths)
        count = int(offsets[-1])
        place = torch.arange(count) - offsets[:-1].repeat_interleave(lengths)
        order = Order(offsets, newest_first(offsets, count))
        label = torch.from_numpy(self.label)[rows]
        return self.category[start + place], self.target[rows], order, label


class Small(nn.Module):
    """Vectors of categories, a sequence module and a tower."""

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__()
        self.is_dare = isinstance(spec, DARESpec)
        self.vectors = nn.Embedding(CATEGORIES, WIDTH)
        self.attention = nn.Embedding(CATEGORIES, 8)
        nn.init.normal_(self.vectors.weight, std=0.1)
        nn.init.normal_(self.attention.weight, std=0.1)
        self.reader = spec.build(Widths(WIDTH, attention=8, positions=MOST))
        width = self.reader.out_dim + WIDTH
        self.tower = nn.Sequential(nn.Linear(width, 64), nn.PReLU(), nn.Linear(64, 1))

    def forward(self, category: Tensor, target: Tensor, order: Order) -> Tensor:
        pair = (self.attention(category), self.attention(target)) if self.is_dare else None
        of_target = self.vectors(target)
        found = self.reader(self.vectors(category), of_target, order, pair)
        return self.tower(torch.cat([found, of_target], -1)).squeeze(-1)


def _auc(model: Small, rows: Rows) -> float:
    with torch.no_grad():
        category, target, order, label = rows.batch(torch.arange(len(rows.label)))
        scores: NDArray = model(category, target, order).double().numpy()
    return auc(scores, label.numpy(), np.ones(len(scores), np.float32))


def trained(spec: SequenceSpec, train: Rows) -> Small:
    torch.manual_seed(0)
    model = Small(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train.label)).split(BATCH):
            category, target, order, label = train.batch(rows)
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(category, target, order), label
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.mark.slow
def test_each_part_of_tim_is_needed() -> None:
    """A behaviour of the target's category adds 2 exp(-(position - 1) / 3) to the log-odds."""
    train, test = Rows(TRAIN, 1), Rows(TEST, 2)
    models = {name: trained(spec, train) for name, spec in SPECS.items()}
    scores = {name: _auc(model, test) for name, model in models.items()}
    for name in ("without encoding", "without attention", "without representation"):
        assert scores["tim"] > scores[name] + 0.01, scores
    assert scores["tim"] > scores["din"] + 0.005, scores  # which knows no positions
    assert scores["dare"] > scores["without encoding"] + 0.01, scores
    # What it has learned: behaviours of the target's category count the more the newer they are.
    model, order = models["tim"], Order(torch.tensor([0, MOST]), torch.arange(MOST, 0, -1))
    same, other = (
        model.reader.logits(
            model.vectors(torch.full((MOST,), c)), model.vectors(torch.tensor([3])), order
        )
        for c in (3, 4)
    )
    assert same[-1] > same[-6] > same[-15]
    assert (same[-6:] > other[-6:]).all()
