"""The chapter on discriminability: what layers and features know of labels, and what pairs were learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prismrec.analysis.discriminability import (
    MOST_FIT_ROWS,
    ROWS_PER_CLASS,
    LayerInformation,
    layer_information,
)
from prismrec.analysis.feature_information import (
    FeatureInformation,
    feature_information,
    pair_correlation,
    pair_strengths,
)
from prismrec.analysis.pair_blocks import PairBlocks, pair_blocks
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.subject import Progress, Subject

MOST_FEATURES = 30
"""Features in a plot, those that say most; the numbers have all."""
MOST_LAYERS = 40
"""Layers in a plot, those that know most; the numbers have all."""
MOST_MAPS = 4
"""Heat maps of learned pairs of a model, those that follow the information best."""
_PARTS = {
    "fields": "field vectors",
    "sequence": "sequences",
    "interaction": "interactions",
    "hidden": "hidden layers",
    "mix": "mixes",
    "tower": "towers",
    "logit": "logits",
}
_LAYER_SOURCE = "Mutual information by counts, with the correction of Miller (1955)"
_PAIR_SOURCE = "Pan et al., Field-weighted Factorization Machines, WWW 2018, section 4"


@dataclass(frozen=True, slots=True)
class LearnedPairs:
    """How an interaction weighs pairs of fields.

    Args:
        blocks: its matrices.
        strengths: (N, N) mean size of what a pair adds.
        informed: (T, N, N) what the same fields say together.
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
class Discriminability:
    """What was measured of one model.

    Args:
        name: the model's.
        tasks: names of its tasks.
        layers: in the order of the forward pass.
        features: of its sample.
        pairs: of its interactions.
    """

    name: str
    tasks: tuple[str, ...]
    layers: list[LayerInformation]
    features: FeatureInformation
    pairs: list[LearnedPairs]


def measure(subject: Subject, progress: Progress) -> Discriminability:
    """What a model's layers and features know of its labels, and how it weighs pairs of fields."""
    features = feature_information(subject, progress)
    places = {name: at for at, name in enumerate(features.names)}
    blocks = pair_blocks(subject)
    pairs = []
    for each, strengths in zip(blocks, pair_strengths(subject, blocks), strict=True):
        own = torch.tensor([places[name] for name in each.fields])
        pairs.append(LearnedPairs(each, strengths, features.pairs[:, own][:, :, own]))
    return Discriminability(
        subject.name,
        tuple(subject.recipe.task_names),
        layer_information(subject, progress),
        features,
        pairs,
    )


def discriminability_chapter(subjects: Sequence[Subject], progress: Progress) -> Chapter:
    """What the layers and features of every model know of its labels.

    Args:
        subjects: models, all shown side by side.
        progress: told how far it is.
    """
    found = [measure(each, progress) for each in subjects]
    plots = [_parts(found)] if any(each.layers for each in found) else []
    plots += [_layers(each) for each in found if each.layers]
    plots += [_features(each) for each in _distinct(found)]
    plots += [_informed(each, task) for each in _distinct(found) for task in range(len(each.tasks))]
    if any(each.pairs for each in found):
        plots.append(_correlations(found))
    plots += [_learned(each, pairs) for each in found for pairs in _best(each)]
    summary = [sentence for each in found for sentence in _told(each, len(found) > 1)]
    return Chapter(
        "discriminability", "Discriminability", summary, plots, list(_missing(found, subjects))
    )


def _distinct(found: Sequence[Discriminability]) -> list[Discriminability]:
    """Models whose features differ from those of the models before: equal ones are shown once."""
    kept: list[Discriminability] = []
    for each in found:
        if not any(
            each.tasks == other.tasks
            and each.features.names == other.features.names
            and each.features.alone == other.features.alone
            for other in kept
        ):
            kept.append(each)
    return kept


def _best(found: Discriminability) -> list[LearnedPairs]:
    """The interactions to draw, those that follow the information of some task best."""

    def score(pairs: LearnedPairs) -> float:
        return max((value for both in pairs.correlations() for value in both if value), default=0)

    return sorted(found.pairs, key=lambda each: -score(each))[:MOST_MAPS]


def _told(found: Discriminability, is_one_of_many: bool) -> Iterator[str]:
    which = f"{found.name}: " if is_one_of_many else ""
    for at, task in enumerate(found.tasks):
        if found.layers:
            yield which + _layers_told(found, at, task)
        ranked = _ranked(found.features, at)[:3]
        listed = ", ".join(
            f"`{name}` {found.features.alone[place][at].share:.2%}" for place, name in ranked
        )
        yield f"{which}for `{task}`, the features that say most alone are {listed} of the label's entropy."
    for pairs in _best(found)[:2]:
        for task, (norms, strengths) in zip(found.tasks, pairs.correlations(), strict=True):
            said = [
                f"{what} {value:.2f}"
                for what, value in (("norms", norms), ("strengths", strengths))
                if value is not None
            ]
            if said:
                yield (
                    f"{which}how {pairs.blocks.name} weighs pairs of fields correlates with what they "
                    f"say about `{task}`: {', '.join(said)}."
                )


def _layers_told(found: Discriminability, at: int, task: str) -> str:
    by_part: dict[str, LayerInformation] = {}
    for each in found.layers:
        before = by_part.get(each.point.part)
        if before is None or each.by_task[at].share > before.by_task[at].share:
            by_part[each.point.part] = each
    best = max(by_part.values(), key=lambda each: each.by_task[at].share)
    logit = next(e for e in found.layers if e.point.part == "logit" and e.point.task == task)
    fields = by_part.get("fields")
    from_fields = (
        f", the field vectors of one set at most {fields.by_task[at].share:.1%}" if fields else ""
    )
    return (
        f"for `{task}`, `{best.point.name}` knows most of the label, {best.by_task[at].share:.1%} of "
        f"its entropy; its logit {logit.by_task[at].share:.1%}{from_fields}."
    )


def _ranked(features: FeatureInformation, task: int | None) -> list[tuple[int, str]]:
    """Place and name of the features, those that say most about a task, or about any, first."""

    def score(place: int) -> float:
        alone = features.alone[place]
        return max(each.share for each in (alone if task is None else alone[task : task + 1]))

    places = sorted(range(len(features.names)), key=lambda place: -score(place))
    return [(place, features.names[place]) for place in places]


def _missing(found: Sequence[Discriminability], subjects: Sequence[Subject]) -> Iterator[str]:
    for each, subject in zip(found, subjects, strict=True):
        if not each.layers:
            yield (
                f"{each.name}: {subject.num_rows} rows are too few to say what layers know; take "
                f"{4 * ROWS_PER_CLASS} at least, {MOST_FIT_ROWS * 2} for 64 classes."
            )
        if not each.pairs:
            yield (
                f"{each.name}: its interactions weigh no pairs of fields, so there is nothing to hold "
                "against their information."
            )
        for task, entropy in zip(each.tasks, each.features.entropies.tolist(), strict=True):
            if entropy == 0:
                yield (
                    f"{each.name}: every row of the sample has the same label of `{task}`, or none; "
                    "there is nothing to know of it. Take more rows, or another split."
                )


def _parts(found: Sequence[Discriminability]) -> Plot:
    """The best layer of each part of every model."""
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for model in found:
        for at, task in enumerate(model.tasks):
            best: dict[str, tuple[float, str]] = {}
            for each in model.layers:
                part, share = _PARTS[each.point.part], each.by_task[at].share
                if part not in best or share > best[part][0]:
                    best[part] = share, each.point.name
            name = f"{model.name}, {task}" if len(found) > 1 else task
            ordered = [part for part in _PARTS.values() if part in best]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "x": ordered,
                    "y": [best[part][0] for part in ordered],
                    "text": [best[part][1] for part in ordered],
                    "hovertemplate": "%{text}: %{y:.2%}<extra></extra>",
                }
            )
            rows += [(model.name, task, part, best[part][1], best[part][0]) for part in ordered]
    return Plot(
        "What each part of a model knows of the labels",
        "From the vectors that go in to the logit that comes out. Knowledge can only be lost on the "
        "way; that it seems to grow means that it lies closer to hand: fewer classes show it.",
        "The best layer of each part. " + _LAYERS_DEFINITION,
        _LAYER_SOURCE,
        traces,
        {"yaxis": {"title": {"text": "share of H(Y)"}, "tickformat": ".0%"}},
        Numbers(("model", "task", "part", "layer", "share of H(Y)"), rows),
    )


_LAYERS_DEFINITION = (
    "A layer's vectors fall into at most 64 classes by k-means, scalars by quantiles, fitted on rows "
    "that do not count; mutual information of class and label, less what chance alone brings, as a "
    "share of the label's entropy."
)


def _shown(model: Discriminability) -> list[LayerInformation]:
    """Layers to draw, in the order of the forward pass; logits always."""

    def score(each: LayerInformation) -> float:
        return max(said.share for said in each.by_task) + (each.point.part == "logit")

    best = sorted(model.layers, key=lambda each: -score(each))[:MOST_LAYERS]
    kept = {each.point.name for each in best}
    return [each for each in model.layers if each.point.name in kept]


def _layers(model: Discriminability) -> Plot:
    shown = _shown(model)
    names = [each.point.name for each in shown]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": task,
            "y": names,
            "x": [each.by_task[at].share for each in shown],
            "hovertemplate": "%{y}: %{x:.2%}<extra>" + task + "</extra>",
        }
        for at, task in enumerate(model.tasks)
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            *(model.name, each.point.name, each.point.part, task, each.point.width, each.classes),
            *(said.nats, said.correction, said.entropy, said.share, said.rows),
        )
        for each in model.layers
        for task, said in zip(model.tasks, each.by_task, strict=True)
    ]
    columns = (
        *("model", "layer", "part", "task", "width", "classes"),
        *("nats", "correction", "H(Y)", "share of H(Y)", "rows"),
    )
    return Plot(
        f"What the layers of {model.name} know",
        "In the order of the forward pass. A task's tower should know more of its own label than of "
        "others'; an expert that knows nothing of any label is not used.",
        _LAYERS_DEFINITION,
        _LAYER_SOURCE,
        traces,
        {
            "xaxis": {"tickformat": ".0%"},
            "yaxis": {"autorange": "reversed", "dtick": 1, "automargin": True},
            "height": 120 + max(9 * len(traces), 18) * len(names),
        },
        Numbers(columns, rows),
    )


def _features(model: Discriminability) -> Plot:
    features = model.features
    shown = _ranked(features, None)[:MOST_FEATURES]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": task,
            "y": [name for _, name in shown],
            "x": [features.alone[place][at].share for place, _ in shown],
            "hovertemplate": "%{y}: %{x:.2%}<extra>" + task + "</extra>",
        }
        for at, task in enumerate(model.tasks)
    ]
    rows: list[tuple[Cell, ...]] = [
        (name, task, said.nats, said.correction, said.entropy, said.share, said.rows)
        for name, alone in zip(features.names, features.alone, strict=True)
        for task, said in zip(model.tasks, alone, strict=True)
    ]
    columns = ("feature", "task", "nats", "correction", "H(Y)", "share of H(Y)", "rows")
    return Plot(
        f"What features say alone{_on(model)}",
        "Those that say most come first. Of ids with many values this is a lower bound: rare values "
        "are put together.",
        f"Mutual information of a feature, cut into at most {features.num_categories} categories, and "
        f"the label, on {features.rows:,} rows, less what chance brings, as a share of the label's entropy.",
        _PAIR_SOURCE,
        traces,
        {
            "xaxis": {"tickformat": ".1%"},
            "yaxis": {"autorange": "reversed", "dtick": 1, "automargin": True},
            "height": 120 + max(9 * len(traces), 18) * len(shown),
        },
        Numbers(columns, rows),
    )


def _on(model: Discriminability) -> str:
    return f", {model.name}"


def _informed(model: Discriminability, task: int) -> Plot:
    features, name = model.features, model.tasks[task]
    places = sorted(place for place, _ in _ranked(features, task)[:MOST_FEATURES])
    values = features.pairs[task] / max(float(features.entropies[task]), 1e-12)
    rows: list[tuple[Cell, ...]] = [
        (
            features.names[i],
            features.names[j],
            float(features.pairs[task, i, j]),
            float(values[i, j]),
        )
        for i in range(len(features.names))
        for j in range(i + 1, len(features.names))
    ]
    return Plot(
        f"What pairs of features say about {name}{_on(model)}",
        "Bright crosses are features that say much with every partner; a bright cell alone is a pair "
        "that says what neither of its features does.",
        f"Mutual information of two features together, each in {features.num_pair_categories} "
        "categories, and the label, less what chance brings, as a share of the label's entropy.",
        _PAIR_SOURCE,
        [_heat_map([features.names[place] for place in places], values[places][:, places])],
        _square(len(places)),
        Numbers(("feature", "with", "nats", "share of H(Y)"), rows),
    )


def _learned(model: Discriminability, pairs: LearnedPairs) -> Plot:
    norms = pairs.blocks.norms()
    fields = pairs.blocks.fields
    total = norms.nansum(0) + norms.nansum(1)
    places = sorted(total.argsort(descending=True)[:MOST_FEATURES].tolist())
    rows: list[tuple[Cell, ...]] = [
        (fields[i], fields[j], float(norms[i, j]), float(pairs.strengths[i, j]))
        for i, j in pairs.blocks.meets.nonzero().tolist()
    ]
    return Plot(
        f"Learned pairs of {model.name}: {pairs.blocks.name}",
        "Row: the field whose vector is mapped; column: the field that it meets. A pattern like that of "
        "the information above means that the weights found the pairs that say most.",
        "Frobenius norm of the matrix between two fields, over the square root of its width: 1 is a "
        "plain inner product. Of a cross network or PFL it is the first layer's. The numbers have the "
        "mean size of what a pair adds too.",
        _PAIR_SOURCE,
        [_heat_map([fields[place] for place in places], norms[places][:, places])],
        _square(len(places)),
        Numbers(("field", "meets", "norm", "strength"), rows),
    )


def _correlations(found: Sequence[Discriminability]) -> Plot:
    rows: list[tuple[Cell, ...]] = [
        (model.name, pairs.blocks.name, task, norms, strengths)
        for model in found
        for pairs in model.pairs
        for task, (norms, strengths) in zip(model.tasks, pairs.correlations(), strict=True)
    ]
    traces = []
    for column, what in ((3, "norms"), (4, "strengths")):
        for task in dict.fromkeys(row[2] for row in rows):
            of_task = [row for row in rows if row[2] == task]
            names = [f"{row[0]}: {row[1]}" if len(found) > 1 else row[1] for row in of_task]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{what}, {task}",
                    "y": names,
                    "x": [row[column] for row in of_task],
                }
            )
    return Plot(
        "Whether learned pairs follow what pairs say",
        "1: the interaction gives most weight to the pairs that say most about the label; 0: no relation. "
        "The paper on FwFM found 0.56 for its weights and 0.43 for weights times products.",
        "Pearson's correlation, over pairs of different fields, of their information with the norms of "
        "their matrices, and with the mean size of what they add to the output.",
        _PAIR_SOURCE,
        traces,
        {
            "xaxis": {"range": [-1, 1]},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "height": 140 + 14 * len(rows) * 2,
        },
        Numbers(("model", "interaction", "task", "of norms", "of strengths"), rows),
    )


def _heat_map(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    cells = [[None if cell != cell else cell for cell in row] for row in values.tolist()]
    return {"type": "heatmap", "x": list(names), "y": list(names), "z": cells}


def _square(count: int) -> dict[str, Any]:
    return {
        "xaxis": {"type": "category", "automargin": True, "tickangle": -60},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "height": 200 + 16 * count,
    }
