"""Plots and the bins behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismrec.tracking.plots import calibration_bins, plot_calibration, plot_loss, plot_pushes

PNG = b"\x89PNG\r\n\x1a\n"


def test_bins_hold_every_example_once_in_order_of_the_prediction() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(103)
    labels = (rng.random(103) < probabilities).astype(float)
    predicted, observed, counts = calibration_bins(probabilities, labels, 10)
    assert counts.sum() == 103
    assert counts.max() - counts.min() <= 1
    assert (np.diff(predicted) > 0).all()
    assert np.isclose((observed * counts).sum(), labels.sum())
    assert len(calibration_bins(probabilities[:3], labels[:3], 10)[0]) == 3


def test_plots_are_png_files(tmp_path: Path) -> None:
    curves = {"train": ([0, 10, 20], [0.7, 0.6, 0.55]), "valid": ([20], [0.58])}
    bins = {
        "click": calibration_bins(
            np.array([0.1, 0.2, 0.6, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]), 2
        ),
        "never": calibration_bins(np.array([0.1, 0.2]), np.zeros(2), 2),
    }
    for path in (
        plot_loss(curves, tmp_path / "plots" / "loss.png"),
        plot_pushes(curves, tmp_path / "plots" / "gradients.png"),
        plot_calibration(bins, tmp_path / "plots" / "calibration.png"),
    ):
        content = path.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 5000
