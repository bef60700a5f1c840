"""Plots of pairs: what two features say together, what weights interactions have, and whether they agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismrec.analysis.feature_information import (
    FeatureInformation,
    pair_correlation,
    pair_strengths,
)
from prismrec.analysis.pair_blocks import PairBlocks, pair_blocks
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.subject import Subject

MOST_FEATURES = 30
"""Features in a plot, those that say most; the numbers have all."""
MOST_MAPS = 4
"""Heat maps of learned pairs of a model, those that follow the information best."""
SOURCE = "Pan et al., Field-weighted Factorization Machines, WWW 2018, section 4"


@dataclass(frozen=True, slots=True)
class LearnedPairs:
    """How an interaction weighs pairs of fields.

    Args:
        blocks: its matrices.
        strengths: (N, N) mean size of what a pair adds.
        informed: (T, N, N) what the same fields say together; NaN where nothing reliable is known, and of
            numeric columns, whose weights and strengths depend on the column's unit.
    """

    blocks: PairBlocks
    strengths: Tensor
    informed: Tensor

    def correlations(self) -> list[tuple[float | None, float | None]]:
        """Of each task, Pearson's correlation of the information with norms and with strengths."""
        norms = self.blocks.norms()
        return [
            (pair_correlation(norms, each), pair_correlation(self.strengths, each))
            for each in self.informed
        ]


@dataclass(frozen=True, slots=True)
class ModelPairs:
    """The interactions of one model.

    Args:
        name: the model's.
        short: the same in titles and on axes.
        tasks: names of its T tasks.
        learned: of each interaction.
    """

    name: str
    short: str
    tasks: tuple[str, ...]
    learned: list[LearnedPairs]

    def best(self) -> list[LearnedPairs]:
        """The interactions to draw, those that follow the information of some task best."""

        def score(pairs: LearnedPairs) -> float:
            return max((x for both in pairs.correlations() for x in both if x), default=0.0)

        return sorted(self.learned, key=lambda each: -score(each))[:MOST_MAPS]


def measure_pairs(subject: Subject, short: str, features: FeatureInformation) -> ModelPairs:
    """How a model weighs pairs of fields, beside what they say.

    Args:
        subject: the model.
        short: its name in titles and on axes.
        features: what the features of its sample say.
    """
    places = {name: at for at, name in enumerate(features.names)}
    blocks = pair_blocks(subject)
    is_number = torch.tensor([each not in subject.spec.fields for each in features.names])
    pairs = features.pairs.masked_fill(is_number | is_number.unsqueeze(1), math.nan)
    learned = []
    for each, strengths in zip(blocks, pair_strengths(subject, blocks), strict=True):
        own = torch.tensor([places[name] for name in each.fields])
        learned.append(LearnedPairs(each, strengths, pairs[:, own][:, :, own]))
    return ModelPairs(subject.name, short, tuple(subject.recipe.task_names), learned)


def informed_plot(
    title: str, features: FeatureInformation, task: int, shown: Sequence[int]
) -> Plot:
    """What pairs of features say about a label.

    Args:
        title: with the label's and the model's name.
        features: what was counted.
        task: which label.
        shown: places of the features to draw.
    """
    names, nats = features.names, features.pairs[task]
    shares = nats / max(float(features.entropies[task]), 1e-12)
    places = sorted(shown)
    rows: list[tuple[Cell, ...]] = [
        (names[i], names[j], float(nats[i, j]), float(shares[i, j]))
        for i, j in nats.isfinite().triu(1).nonzero().tolist()
    ]
    return Plot(
        title,
        "Bright crosses are features that say much with every partner; a bright cell alone is a pair "
        "that says what neither of its features does.",
        f"Mutual information of two features together, each in {features.num_pair_categories} "
        "categories, and the label, less what chance brings, as a share of the label's entropy.",
        SOURCE,
        [_heat_map([names[place] for place in places], shares[places][:, places])],
        _square(len(places)),
        Numbers(("feature", "with", "nats", "share of H(Y)"), rows),
    )


def learned_plot(model: ModelPairs, pairs: LearnedPairs) -> Plot:
    """How an interaction weighs pairs of fields."""
    norms, fields = pairs.blocks.norms(), pairs.blocks.fields
    total = norms.nansum(0) + norms.nansum(1)
    places = sorted(total.argsort(descending=True)[:MOST_FEATURES].tolist())
    rows: list[tuple[Cell, ...]] = [
        (fields[i], fields[j], float(norms[i, j]), float(pairs.strengths[i, j]))
        for i, j in pairs.blocks.meets.nonzero().tolist()
    ]
    return Plot(
        f"Learned pairs of {model.short}: {pairs.blocks.name}",
        "Row: the field whose vector is mapped; column: the field that it meets. A pattern like that of "
        "the information above means that the weights found the pairs that say most.",
        "Frobenius norm of the matrix between two fields, over the square root of its width: 1 is a "
        "plain inner product. Of a cross network or PFL it is the first layer's. The numbers have the "
        "mean size of what a pair adds too.",
        SOURCE,
        [_heat_map([fields[place] for place in places], norms[places][:, places])],
        _square(len(places)),
        Numbers(("field", "meets", "norm", "strength"), rows),
    )


def correlation_plot(models: Sequence[ModelPairs]) -> Plot:
    """Whether the weights of every interaction follow what pairs say."""
    found = [
        (model, pairs.blocks, task, both)
        for model in models
        for pairs in model.learned
        for task, both in zip(model.tasks, pairs.correlations(), strict=True)
    ]
    rows: list[tuple[Cell, ...]] = [
        (model.name, blocks.name, task, *both) for model, blocks, task, both in found
    ]
    traces = []
    for column, what in enumerate(("norms", "strengths")):
        for task in dict.fromkeys(each[2] for each in found):
            of_task = [(m.short, blocks, both) for m, blocks, name, both in found if name == task]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{what}, {task}",
                    "y": [
                        f"{short} · {_brief(blocks)}" if len(models) > 1 else _brief(blocks)
                        for short, blocks, _ in of_task
                    ],
                    "x": [both[column] for _, _, both in of_task],
                    "visible": True if what == "norms" else "legendonly",
                }
            )
    return Plot(
        "Whether learned pairs follow what pairs say",
        "1: the interaction gives most weight to the pairs that say most about the label; 0: no relation. "
        "The paper on FwFM found 0.56 for its weights and 0.43 for weights times products. Press a name "
        "to see strengths.",
        "Pearson's correlation, over pairs of different fields that look ids up, of their information with "
        "the norms of their matrices, and with the mean size of what they add to the output (strengths). "
        "Numeric columns are left out: what they add depends on their unit.",
        SOURCE,
        traces,
        {
            "xaxis": {"range": [-1, 1]},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "height": 180 + 14 * len(rows),
        },
        Numbers(("model", "interaction", "task", "of norms", "of strengths"), rows),
    )


def _brief(blocks: PairBlocks) -> str:
    return f"{blocks.set_name}, {blocks.expert}, {blocks.kind}"


def _heat_map(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    cells = [[None if cell != cell else cell for cell in row] for row in values.tolist()]
    return {"type": "heatmap", "x": list(names), "y": list(names), "z": cells}


def _square(count: int) -> dict[str, Any]:
    return {
        "xaxis": {"type": "category", "automargin": True, "tickangle": -60},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "height": 200 + 16 * count,
    }
