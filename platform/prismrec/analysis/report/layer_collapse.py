"""How many dimensions the layers of a model use, by what they make of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismrec.analysis.layers import LayerPoint, layer_points, layer_rows
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.report.labels import Label
from prismrec.analysis.spectra import Spectrum, gram, spectrum_of_gram
from prismrec.analysis.subject import Progress, Subject

MOST_WIDTH = 4096
"""Wider layers are left out: their Gram matrices would take over 128 MiB each."""
MOST_BARS = 30


@dataclass(frozen=True, slots=True)
class LayerSpectrum:
    """What a layer makes of the sample.

    Args:
        point: the layer.
        spectrum: of its (rows, W) vectors.
    """

    point: LayerPoint
    spectrum: Spectrum

    @property
    def share(self) -> float:
        """RankMe as a share of the most possible, 0..1."""
        return self.spectrum.rank_me / self.spectrum.bound if self.spectrum.bound else 0.0


def layer_spectra(subject: Subject, progress: Progress) -> list[LayerSpectrum]:
    """The spectrum of every layer but the logits, in the order of the forward pass.

    Not centred, as RankMe is defined. Memory is a (W, W) fp64 matrix for each layer.
    """
    points = [
        each for each in layer_points(subject) if each.part != "logit" and each.width <= MOST_WIDTH
    ]
    if not points:
        return []
    grams: dict[str, Tensor] = {
        each.name: torch.zeros(each.width, each.width, dtype=torch.float64) for each in points
    }
    done = 0
    for rows in layer_rows(subject, list(grams)):
        for name, total in grams.items():
            total += gram(rows.vectors[name])
        done += len(rows.labels)
        progress(f"{subject.name}: spectra of layers", done, subject.num_rows)
    return [
        LayerSpectrum(each, spectrum_of_gram(grams[each.name], subject.num_rows)) for each in points
    ]


def layer_plot(
    names: Sequence[tuple[str, Label]], models: Sequence[Sequence[LayerSpectrum]]
) -> Plot:
    """RankMe of the layers of every model, in one plot."""
    traces: list[dict[str, Any]] = []
    for (_, label), found in zip(names, models, strict=True):
        shown = found[:MOST_BARS]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label.short,
                "model": label.number,
                "y": [each.point.name for each in shown],
                "x": [each.share for each in shown],
                "text": [f"{each.spectrum.rank_me:.1f} of {each.spectrum.bound}" for each in shown],
            }
        )
    rows: list[tuple[Cell, ...]] = [
        (
            *(name, each.point.name, each.point.part, each.point.width),
            *(each.spectrum.rank_me, each.share, each.spectrum.information_abundance),
            *(each.spectrum.stable_rank, each.spectrum.nuclear_norm),
        )
        for (name, _), found in zip(names, models, strict=True)
        for each in found
    ]
    bars = sum(len(trace["y"]) for trace in traces)
    return Plot(
        "Dimensions that layers use",
        "How far the vectors of the sample fill each layer, from field vectors up. A layer that is "
        "narrower here than what feeds it has thrown dimensions away.",
        "RankMe: the exponential of the entropy of the singular values' shares, of the rows of the sample "
        "as each layer sees them, as a share of the layer's width or the number of rows, whichever is "
        "less. Never in one plot with tables: those count each id once.",
        "Garrido et al., RankMe, ICML 2023",
        traces,
        {
            "yaxis": {"autorange": "reversed", "dtick": 1},
            "xaxis": {"range": [0, 1], "title": {"text": "share"}},
            "height": max(320, 120 + 22 * bars),
        },
        Numbers(
            (
                *("model", "layer", "part", "width", "RankMe", "share", "information abundance"),
                *("stable rank", "sum of singular values"),
            ),
            rows,
        ),
    )
