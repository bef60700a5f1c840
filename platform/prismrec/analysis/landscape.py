"""A slice through the loss around trained weights.

The dense weights are moved along two random directions whose rows are as long as the weights' own,
so that slices of different models, and of layers of different scale, can be compared. The subject's
weights are never written: the model runs with others in their place.

Notation: w weights, d directions, P points along each.

Source: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prismrec.analysis.gradients import NamedLoss, targets_of
from prismrec.analysis.passes import first_rows
from prismrec.analysis.subject import Progress, Subject
from prismrec.models.batch_norm import BatchNorm
from prismrec.models.domains import DomainScale
from prismrec.models.layers import LayerNorm
from prismrec.models.objectives import build_decoder

_SCALES = (LayerNorm, BatchNorm, DomainScale, nn.LayerNorm, nn.BatchNorm1d)


@dataclass(frozen=True, slots=True)
class Slice:
    """How a slice is taken.

    Args:
        points: P, odd, so that one is the trained weights.
        span: how far it goes to both sides; 1 moves every row of weights by its own length.
        rows: rows of the sample that the loss is taken over, the first ones.
        seed: of the directions.
    """

    points: int = 11
    span: float = 1.0
    rows: int = 2048
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Landscape:
    """The loss on a grid.

    Args:
        offsets: (P,) along each direction, from -span to span.
        losses: (P, P) of each loss by its name, the mean over tasks; [a, b] is at w + a d_1 + b d_2.
        rows: rows that it is taken over.
    """

    offsets: Tensor
    losses: dict[str, Tensor]
    rows: int

    def rise(self, loss: str) -> float:
        """How much the loss grows, on average, one step of the grid away from the trained weights."""
        grid, at = self.losses[loss], len(self.offsets) // 2
        around = grid[at - 1 : at + 2, at - 1 : at + 2]
        return float((around.sum() - grid[at, at]) / 8 - grid[at, at])


def landscape(
    subject: Subject, losses: Sequence[NamedLoss], chosen: Slice, progress: Progress
) -> Landscape:
    """The losses around a model's dense weights; tables stay as they are.

    Args:
        subject: the model.
        losses: of every task by itself.
        chosen: how the slice is taken.
        progress: told how many points of the grid are done.

    Raises:
        ValueError: there are fewer than three points along a direction, or an even number.
    """
    if chosen.points < 3 or chosen.points % 2 == 0:
        raise ValueError(f"a slice needs an odd number of points, 3 or more, got {chosen.points}")
    samples = list(first_rows(subject, chosen.rows, "rows for the loss landscape", progress))
    labels = torch.cat([each.labels for each in samples])
    targets, decoder = targets_of(labels), build_decoder(subject.recipe)
    weights = {name: each.detach() for name, each in subject.model.named_parameters()}
    first, second = directions(subject.model, chosen.seed)
    offsets = torch.linspace(-chosen.span, chosen.span, chosen.points, dtype=torch.float64)
    offsets[chosen.points // 2] = 0
    grids = {each.name: torch.zeros(chosen.points, chosen.points).double() for each in losses}
    with torch.no_grad():
        for a, along in enumerate(offsets.tolist()):
            for b, across in enumerate(offsets.tolist()):
                moved = {
                    name: weight + along * first[name] + across * second[name]
                    for name, weight in weights.items()
                }
                given = [functional_call(subject.model, moved, (s.inputs,))[0] for s in samples]
                logits, levels = decoder(torch.cat(given).float())
                for each in losses:
                    total, _ = each.objective(logits, targets, levels)
                    grids[each.name][a, b] = float(total) / labels.shape[1]
            progress(f"{subject.name}: loss landscape", a + 1, chosen.points)
    return Landscape(offsets, grids, len(labels))


def directions(model: nn.Module, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two random directions whose rows are as long as the weights'; none for biases and scales of norms."""
    generator = torch.Generator().manual_seed(seed)
    still = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, _SCALES) or "bias" in name
    }
    still |= {name for name, _ in model.named_parameters() if ".biases." in f".{name}"}
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, weight in model.named_parameters():
        for each in found:
            drawn = torch.randn(weight.shape, generator=generator)
            each[name] = torch.zeros_like(drawn) if name in still else as_long_as(drawn, weight)
    return found


def as_long_as(drawn: Tensor, weight: Tensor) -> Tensor:
    """The same direction (..., n) with every row as long as the weight's: `d |w| / |d|`."""
    weight = weight.detach()
    return drawn * weight.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
