"""Plots of a run as PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

_DPI = 120


def plot_loss(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> Path:
    """Loss against step.

    Args:
        curves: steps and losses by name of the curve, such as `train` and `valid`.
        path: the PNG file to write.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=name, marker="." if len(steps) < 50 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per example")
    axes.legend()
    axes.grid(alpha=0.3)
    return _save(figure, path)


@dataclass(frozen=True, slots=True)
class TrialPoints:
    """The trials of a search along one of its keys.

    Args:
        key: such as `embedding.dim`.
        points: of each trial the key's value, the best value of the metric, and how it ended.
    """

    key: str
    points: Sequence[tuple[object, float, str]]


def plot_trials(keys: Sequence[TrialPoints], metric: str, path: Path) -> Path:
    """The metric of the trials of a search against each of its keys.

    Args:
        keys: one panel each.
        metric: its name.
        path: the PNG file to write.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(3.2 * max(len(keys), 1), 3.6), layout="constrained")
    panels = figure.subplots(1, max(len(keys), 1), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=False):
        numbers = [v for v, _, _ in key.points if isinstance(v, int | float)]
        is_number = len(numbers) == len(key.points)
        for state in dict.fromkeys(state for _, _, state in key.points):
            here = [(value, best) for value, best, each in key.points if each == state]
            places = [value if is_number else str(value) for value, _ in here]
            axes.scatter(places, [best for _, best in here], label=state, s=18)
        if is_number and min(numbers) > 0 and max(numbers) / min(numbers) >= 20:
            axes.set_xscale("log")
        axes.set_xlabel(key.key, fontsize=7)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(metric)
    panels[0].legend()
    return _save(figure, path)


def plot_pushes(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> Path:
    """Mean gradient of the logits against step, on a logarithmic scale.

    Args:
        curves: steps and means by name of the curve, such as `click negatives`.
        path: the PNG file to write.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, means) in curves.items():
        axes.plot(steps, means, label=name, marker="." if len(steps) < 50 else None)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("mean |dL/dz|")
    axes.legend()
    axes.grid(alpha=0.3)
    return _save(figure, path)


def plot_windows(
    starts: Sequence[int], curves: Mapping[str, Sequence[float | None]], path: Path
) -> Path:
    """Metrics of a stream's windows against time, a panel for each kind of metric.

    Args:
        starts: first time of every window.
        curves: a value for every window, None where it has none, by `task/kind`.
        path: the PNG file to write.

    Returns:
        `path`.
    """
    kinds = list(dict.fromkeys(name.rpartition("/")[2] for name in curves))
    figure = Figure(figsize=(7, 2.2 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        for name, values in curves.items():
            task, _, own = name.rpartition("/")
            if own == kind:
                numbers = [np.nan if value is None else value for value in values]
                axes.plot(starts, numbers, label=task, marker=".")
        axes.set_ylabel(kind)
        axes.grid(alpha=0.3)
    panels[0].legend()
    panels[-1].set_xlabel("start of the window, before it was trained on")
    return _save(figure, path)


def plot_calibration(bins: Mapping[str, CalibrationBins], path: Path) -> Path:
    """Observed rate against predicted probability, both on a logarithmic scale.

    Args:
        bins: what `calibration_bins` gives, by task.
        path: the PNG file to write.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for task, (predicted, observed, _) in bins.items():
        seen = observed > 0
        axes.plot(predicted[seen], observed[seen], marker="o", markersize=4, label=task)
    ends = [float(part[part > 0].min(initial=1.0)) for p, o, _ in bins.values() for part in (p, o)]
    low = min(ends, default=0.01)
    axes.plot([low, 1], [low, 1], color="grey", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("mean predicted probability")
    axes.set_ylabel("observed rate")
    axes.legend()
    axes.grid(alpha=0.3)
    return _save(figure, path)


CalibrationBins = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""Mean prediction, observed rate and number of examples of each bin."""


def calibration_bins(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64], num_bins: int = 20
) -> CalibrationBins:
    """Bins of (nearly) equal numbers of examples, by predicted probability.

    Args:
        probabilities: (n,) predictions.
        labels: (n,) 0 or 1.
        num_bins: bins; fewer where there are fewer examples.

    >>> p, o, n = calibration_bins(np.array([.1, .3, .6, .8]), np.array([0., 0., 1., 0.]), 2)
    >>> p.round(3).tolist(), o.tolist(), n.tolist()
    ([0.2, 0.7], [0.0, 0.5], [2, 2])
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, num_bins) if len(part)]
    return (
        np.array([probabilities[part].mean() for part in parts], dtype=np.float64),
        np.array([labels[part].mean() for part in parts], dtype=np.float64),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
    return path
