"""How much each layer of a model knows of each label.

A layer's vectors are cut into classes, by k-means, or a scalar by its quantiles, and the mutual
information of class and label is counted. What cuts is fitted on the first rows of the sample and
counts none of them.

Notation: n rows to fit on, C classes, W width, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prismrec.analysis.information import Information, count_pairs, information
from prismrec.analysis.layers import LayerPoint, layer_points, layer_rows
from prismrec.analysis.subject import Progress, Subject
from prismrec.data.semantic.kmeans import nearest, settled_centers, spread_centers

CLUSTERS = 64
"""Classes of a layer, where the sample has the rows for them."""
ROWS_PER_CLASS = 100
"""Rows that count for each class at least; with fewer there are fewer classes."""
MOST_FIT_ROWS = 6400
"""Rows that k-means is fitted on."""
START_ROWS = 1024
"""Rows that its starts are drawn from."""
FIT_NUMBERS = 1 << 26
"""Numbers of all layers that are kept to fit on at a time; layers beyond take another pass."""
STARTS = 10
"""Starts of k-means, of which the one nearest to its rows is gone on with."""
ITERATIONS = 20
"""Passes of k-means over its rows at most."""


class Codes(Protocol):
    """Cuts vectors into classes."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B,) int64 classes of vectors (B, W)."""


@dataclass(frozen=True, slots=True)
class NearestCenter:
    """The class is that of the nearest center.

    Args:
        centers: (C, W).
    """

    centers: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B,) int64 classes of vectors (B, W)."""
        return nearest(vectors.to(self.centers.dtype), self.centers)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The class of a number is how many edges are below it or equal to it.

    Args:
        edges: ascending, each once.
    """

    edges: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B,) int64 classes of numbers (B, 1)."""
        return torch.bucketize(vectors.reshape(-1).contiguous(), self.edges, right=True)


def fit_codes(vectors: Tensor, num_classes: int, seed: int = 0) -> Codes:
    """What cuts vectors like these into classes: k-means, or quantiles of scalars.

    Args:
        vectors: (n, W), n at least the number of classes.
        num_classes: C.
        seed: of k-means.
    """
    if vectors.shape[1] == 1:
        return fit_quantiles(vectors.flatten(), num_classes)
    generator = torch.Generator().manual_seed(seed)
    some = vectors[torch.randperm(len(vectors), generator=generator)[:START_ROWS]]
    starts = [spread_centers(some, num_classes, generator) for _ in range(STARTS)]
    best = min(starts, key=lambda centers: _distance(some, centers))
    return NearestCenter(settled_centers(vectors, best, ITERATIONS))


def _distance(vectors: Tensor, centers: Tensor) -> float:
    """Sum of the squared distances to the nearest center."""
    nearest_ones = centers[nearest(vectors, centers)]
    return float((vectors - nearest_ones).square().sum(dtype=torch.float64))


def fit_quantiles(values: Tensor, num_classes: int) -> Quantiles:
    """Classes of about equal numbers of rows; equal values share one, so that there may be fewer.

    Args:
        values: (n,).
        num_classes: C.
    """
    ordered = values.sort().values
    at = torch.arange(1, num_classes) * len(ordered) // num_classes
    edges = torch.unique(ordered[at])
    # nothing is below the least value: an edge there would leave the first class empty
    return Quantiles(edges[edges > ordered[0]])


@dataclass(frozen=True, slots=True)
class LayerInformation:
    """What a layer knows.

    Args:
        point: the layer.
        by_task: what its class says about the label of each task.
        classes: C.
    """

    point: LayerPoint
    by_task: tuple[Information, ...]
    classes: int


@dataclass(frozen=True, slots=True)
class Split:
    """How a sample is used.

    Args:
        fit_rows: rows that classes are fitted on, the first ones.
        classes: C.
    """

    fit_rows: int
    classes: int


def split_of(num_rows: int) -> Split | None:
    """How many rows are fitted on, and how many classes the others allow; None for too few rows."""
    fit_rows = min(MOST_FIT_ROWS, num_rows // 4)
    classes = min(CLUSTERS, (num_rows - fit_rows) // ROWS_PER_CLASS, fit_rows)
    return Split(fit_rows, classes) if classes >= 2 else None


def layer_information(subject: Subject, progress: Progress) -> list[LayerInformation]:
    """What every layer knows of every task's label, in the order of the forward pass.

    Empty for a sample with too few rows; see `split_of`.
    """
    split = split_of(subject.num_rows)
    if split is None:
        return []
    groups = list(_groups(layer_points(subject), split.fit_rows))
    found: list[LayerInformation] = []
    for at, points in enumerate(groups):
        of_pass = f", pass {at + 1} of {len(groups)}" if len(groups) > 1 else ""
        found += _of_group(subject, points, split, _named(progress, subject, of_pass))
    return found


def _named(progress: Progress, subject: Subject, of_pass: str) -> Progress:
    return lambda what, done, total: progress(f"{subject.name}: {what}{of_pass}", done, total)


def _groups(points: Sequence[LayerPoint], fit_rows: int) -> Iterator[list[LayerPoint]]:
    """Layers whose rows to fit on fit into memory together."""
    group: list[LayerPoint] = []
    for point in points:
        if group and (sum(each.width for each in group) + point.width) * fit_rows > FIT_NUMBERS:
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def _of_group(
    subject: Subject, points: Sequence[LayerPoint], split: Split, progress: Progress
) -> list[LayerInformation]:
    names = [each.name for each in points]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    codes: dict[str, Codes] = {}
    tasks = len(subject.recipe.task_names)
    counts = {name: torch.zeros(tasks, split.classes, 2, dtype=torch.int64) for name in names}
    done = 0
    for rows in layer_rows(subject, names):
        cut = min(max(split.fit_rows - done, 0), len(rows.labels))
        done += len(rows.labels)
        for name, vectors in rows.vectors.items():
            if cut:
                kept[name].append(vectors[:cut])
        if not codes and done >= split.fit_rows:
            for number, name in enumerate(names):
                codes[name] = fit_codes(torch.cat(kept.pop(name)), split.classes)
                progress("classes of layers", number + 1, len(names))
        if cut < len(rows.labels):
            for name, vectors in rows.vectors.items():
                _count(counts[name], codes[name](vectors[cut:]), rows.labels[cut:])
        progress("information of layers", done, subject.num_rows)
    return [
        LayerInformation(each, tuple(map(information, counts[each.name])), split.classes)
        for each in points
    ]


def _count(counts: Tensor, codes: Tensor, labels: Tensor) -> None:
    """Add the rows with codes (B,) and labels (B, T) to (T, C, 2)."""
    for task, of_task in enumerate(counts):
        label = labels[:, task]
        valid = ~label.isnan()
        of_task += count_pairs(codes, (label > 0.5).long(), len(of_task), 2, valid)
