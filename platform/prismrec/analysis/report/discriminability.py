"""The chapter on discriminability: what layers and features know of labels, and what pairs were learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prismrec.analysis.discriminability import (
    MOST_FIT_ROWS,
    ROWS_PER_CLASS,
    LayerInformation,
    layer_information,
)
from prismrec.analysis.feature_information import (
    FeatureInformation,
    feature_information,
)
from prismrec.analysis.information import Information
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.report.labels import Label, labels_of
from prismrec.analysis.report.learned_pairs import (
    MOST_FEATURES,
    SOURCE,
    ModelPairs,
    correlation_plot,
    informed_plot,
    learned_plot,
    measure_pairs,
)
from prismrec.analysis.subject import Progress, Subject

WASTED = 1.2
"""A layer that knows so many times as much of a label as its logit is told of, if it is no noise."""
MOST_LAYERS = 40
"""Layers in a plot, those that know most; the numbers have all."""
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


@dataclass(frozen=True, slots=True)
class Discriminability:
    """What was measured of one model.

    Args:
        name: the model's.
        label: the same in sentences and on axes.
        tasks: names of its tasks.
        layers: in the order of the forward pass.
        features: of its sample.
        pairs: of its interactions.
    """

    name: str
    label: Label
    tasks: tuple[str, ...]
    layers: list[LayerInformation]
    features: FeatureInformation
    pairs: ModelPairs


def measure(subject: Subject, label: Label, progress: Progress) -> Discriminability:
    """What a model's layers and features know of its labels, and how it weighs pairs of fields.

    Args:
        subject: the model.
        label: its name on axes.
        progress: told how far it is.
    """
    features = feature_information(subject, progress)
    return Discriminability(
        subject.name,
        label,
        tuple(subject.recipe.task_names),
        layer_information(subject, progress),
        features,
        measure_pairs(subject, label.short, features),
    )


def discriminability_chapter(subjects: Sequence[Subject], progress: Progress) -> Chapter:
    """What the layers and features of every model know of its labels.

    Args:
        subjects: models, all shown side by side.
        progress: told how far it is.
    """
    labels = labels_of(subjects)
    found = [measure(each, labels[each.name], progress) for each in subjects]
    plots = [_parts(found)] if any(each.layers for each in found) else []
    plots += [_layers(each) for each in found if each.layers]
    plots += [_features(each, _of(each, found)) for each in _distinct(found)]
    for each in _distinct(found):
        for at, task in enumerate(each.tasks):
            if bool(each.features.pairs[at].isfinite().any()):
                title = f"What pairs of features say about {task}{_of(each, found)}"
                shown = [place for place, _ in _ranked(each.features, at)[:MOST_FEATURES]]
                plots.append(informed_plot(title, each.features, at, shown))
    if any(each.pairs.learned for each in found):
        plots.append(correlation_plot([each.pairs for each in found]))
    plots += [learned_plot(each.pairs, pairs) for each in found for pairs in each.pairs.best()]
    summary = [sentence for each in found for sentence in _told(each, len(found) > 1)]
    summary += [_features_told(each, _of(each, found)) for each in _distinct(found)]
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


def _of(model: Discriminability, found: Sequence[Discriminability]) -> str:
    """Which model's features, where models differ in them."""
    return f", {model.label.short}" if len(_distinct(found)) > 1 else ""


def _told(found: Discriminability, is_one_of_many: bool) -> Iterator[str]:
    which = f"{found.label.short}: " if is_one_of_many else ""
    logits, fields = [], []
    for at, task in enumerate(found.tasks):
        known = [each for each in found.layers if each.by_task[at].is_reliable]
        best = _best_of_parts(known, at)
        own = [each for each in known if each.point.part == "logit" and each.point.task == task]
        logits += [f"{each.by_task[at].share:.1%} of `{task}`" for each in own]
        if own and "fields" in best:
            fields.append(f"{best['fields'].by_task[at].share:.1%}")
    if logits:
        before = f"; in the field vectors of one set lie {_listed(fields)}" if fields else ""
        yield f"{which}the logits know {_listed(logits)} of what there is to know of the labels{before}."
    yield from (which + each for each in _wasted(found))
    for pairs in found.pairs.best()[:1]:
        both = list(zip(found.tasks, pairs.correlations(), strict=True))
        weights = [f"{norms:.2f} for `{task}`" for task, (norms, _) in both if norms is not None]
        sizes = [f"{size:.2f} for `{task}`" for task, (_, size) in both if size is not None]
        if weights and sizes:
            yield (
                f"{which}the weights of pairs of {pairs.blocks.name} correlate with what pairs say by "
                f"{_listed(weights)}; the sizes of what pairs add by {_listed(sizes)}."
            )


def _wasted(found: Discriminability) -> Iterator[str]:
    """Labels of which a layer knows clearly more than their logit."""
    for at, task in enumerate(found.tasks):
        known = [each for each in found.layers if each.by_task[at].is_reliable]
        own = [each for each in known if each.point.part == "logit" and each.point.task == task]
        for logit in own:
            best = max(known, key=lambda each: each.by_task[at].share)
            said, kept = best.by_task[at], logit.by_task[at]
            is_more = said.corrected - kept.corrected > 3 * said.noise
            if is_more and said.share > WASTED * kept.share:
                yield (
                    f"`{best.point.name}` knows {said.share:.1%} of `{task}`, its logit only "
                    f"{kept.share:.1%}: what is behind loses it."
                )


def _features_told(model: Discriminability, of: str) -> str:
    said = []
    for at, task in enumerate(model.tasks):
        first = [
            f"`{name}` {model.features.alone[place][at].share:.2%}"
            for place, name in _ranked(model.features, at)[:2]
        ]
        if first:
            said.append(f"{' and '.join(first)} of `{task}`")
    return f"The features that say most alone{of}: {'; '.join(said) or 'none'}."


def _listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _best_of_parts(layers: Sequence[LayerInformation], at: int) -> dict[str, LayerInformation]:
    """Of each part of a model, the layer that knows most of a task's label."""
    best: dict[str, LayerInformation] = {}
    for each in layers:
        before = best.get(each.point.part)
        if before is None or each.by_task[at].share > before.by_task[at].share:
            best[each.point.part] = each
    return best


def _ranked(features: FeatureInformation, task: int | None) -> list[tuple[int, str]]:
    """Place and name of the features, those that say most about a task, or about any, first.

    Features of which nothing reliable is known are not among them.
    """

    def score(place: int) -> float:
        alone = features.alone[place]
        asked = alone if task is None else alone[task : task + 1]
        return max((each.share for each in asked if each.is_reliable), default=-math.inf)

    places = sorted(range(len(features.names)), key=lambda place: -score(place))
    return [(place, features.names[place]) for place in places if score(place) > -math.inf]


def _known(said: Information) -> float | None:
    """What is drawn of an estimate: nothing where it is noise."""
    return said.share if said.is_reliable else None


def _missing(found: Sequence[Discriminability], subjects: Sequence[Subject]) -> Iterator[str]:
    for each, subject in zip(found, subjects, strict=True):
        if not each.layers:
            yield (
                f"{each.label.short}: {subject.num_rows} rows are too few to say what layers know; take "
                f"{4 * ROWS_PER_CLASS} at least, {MOST_FIT_ROWS * 2} for 64 classes."
            )
        if not each.pairs.learned:
            yield (
                f"{each.label.short}: its interactions weigh no pairs of fields, so there is nothing to hold "
                "against their information."
            )
        yield from _without(each)


def _without(found: Discriminability) -> Iterator[str]:
    """Of which labels there are too few of one kind."""
    for at, (task, entropy) in enumerate(
        zip(found.tasks, found.features.entropies.tolist(), strict=True)
    ):
        if entropy == 0:
            yield (
                f"{found.label.short}: every row of the sample has the same label of `{task}`, or none; "
                "there is nothing to know of it. Take more rows, or another split."
            )
            continue
        noisy = [e.by_task[at] for e in found.layers if not e.by_task[at].is_reliable]
        if noisy:
            yield (
                f"{found.label.short}: {len(noisy)} of {len(found.layers)} layers are left out for `{task}`: "
                f"{noisy[0].rarest} rows with its rarer label count, less than one for each class. Take "
                "more rows."
            )
        if not bool(found.features.pairs[at].isfinite().any()):
            yield (
                f"{found.label.short}: what pairs of features say about `{task}` is left out: its rarer label "
                f"comes {found.features.alone[0][at].rarest} times, less than once for each pair of "
                "categories. Take more rows."
            )


def _parts(found: Sequence[Discriminability]) -> Plot:
    """The best layer of each part of every model."""
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for model in found:
        for at, task in enumerate(model.tasks):
            known = [each for each in model.layers if each.by_task[at].is_reliable]
            by_part = _best_of_parts(known, at)
            best = [by_part[part] for part in _PARTS if part in by_part]
            parts = [_PARTS[each.point.part] for each in best]
            shares = [each.by_task[at].share for each in best]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{model.label.short}, {task}" if len(found) > 1 else task,
                    **_style(model, at, len(found) > 1),
                    "x": parts,
                    "y": shares,
                    "text": [each.point.name for each in best],
                    "hovertemplate": "%{text}: %{y:.2%}<extra></extra>",
                }
            )
            rows += [
                (model.name, task, part, each.point.name, share)
                for part, each, share in zip(parts, best, shares, strict=True)
            ]
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


def _style(model: Discriminability, task: int, is_one_of_many: bool) -> dict[str, Any]:
    """Models by colour and tasks by dashes, where there are several models."""
    if not is_one_of_many:
        return {}
    return {"model": model.label.number, "line": {"dash": _DASHES[task % len(_DASHES)]}}


_DASHES = ("solid", "dash", "dot", "dashdot")
_LAYERS_DEFINITION = (
    "A layer's vectors fall into at most 64 classes by k-means, scalars by quantiles, fitted on rows "
    "that do not count; mutual information of class and label, less what chance alone brings, as a "
    "share of the label's entropy."
)


def _shown(model: Discriminability) -> list[LayerInformation]:
    """Layers to draw, in the order of the forward pass; logits always."""

    def score(each: LayerInformation) -> float:
        known = [said.share for said in each.by_task if said.is_reliable]
        return max(known, default=-1.0) + (each.point.part == "logit")

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
            "x": [_known(each.by_task[at]) for each in shown],
            "hovertemplate": "%{y}: %{x:.2%}<extra>" + task + "</extra>",
        }
        for at, task in enumerate(model.tasks)
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            *(model.name, each.point.name, each.point.part, task, each.point.width, each.classes),
            *(said.nats, said.correction, said.entropy, said.share, said.rows, said.rarest),
        )
        for each in model.layers
        for task, said in zip(model.tasks, each.by_task, strict=True)
    ]
    columns = (
        *("model", "layer", "part", "task", "width", "classes"),
        *("nats", "correction", "H(Y)", "share of H(Y)", "rows", "rows of the rarer label"),
    )
    return Plot(
        f"What the layers of {model.label.short} know",
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


def _features(model: Discriminability, of: str) -> Plot:
    features = model.features
    shown = _ranked(features, None)[:MOST_FEATURES]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": task,
            "y": [name for _, name in shown],
            "x": [_known(features.alone[place][at]) for place, _ in shown],
            "hovertemplate": "%{y}: %{x:.2%}<extra>" + task + "</extra>",
        }
        for at, task in enumerate(model.tasks)
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            *(name, task, said.nats, said.correction, said.entropy, said.share),
            *(said.rows, said.rarest, said.classes),
        )
        for name, alone in zip(features.names, features.alone, strict=True)
        for task, said in zip(model.tasks, alone, strict=True)
    ]
    columns = (
        *("feature", "task", "nats", "correction", "H(Y)", "share of H(Y)"),
        *("rows", "rows of the rarer label", "categories"),
    )
    return Plot(
        f"What features say alone{of}",
        "Those that say most come first. Of ids with many values this is a lower bound: rare values "
        "are put together.",
        f"Mutual information of a feature, cut into at most {features.num_categories} categories, and "
        f"the label, on {features.rows:,} rows, less what chance brings, as a share of the label's entropy.",
        SOURCE,
        traces,
        {
            "xaxis": {"tickformat": ".1%"},
            "yaxis": {"autorange": "reversed", "dtick": 1, "automargin": True},
            "height": 120 + max(9 * len(traces), 18) * len(shown),
        },
        Numbers(columns, rows),
    )
