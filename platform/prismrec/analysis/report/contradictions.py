"""Of the chapter on entanglement: pairs that two tasks see differently, in the sets of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prismrec.analysis.entanglement import (
    NUM_BINS,
    SHARE,
    Contradictions,
    Contrast,
    Metric,
    PairSample,
    contradictory_pairs,
    contrast,
    distances,
    diversity_index,
    in_medians,
    lengths,
    shared_edges,
    shares_of,
)
from prismrec.analysis.passes import first_rows
from prismrec.analysis.report.alone import Alone, one_id
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.report.findings import Findings
from prismrec.analysis.report.labels import Label
from prismrec.analysis.report.panels import Panel, stacked
from prismrec.analysis.subject import Progress, Subject
from prismrec.models.assembly import split_sets
from prismrec.train.metrics.arrays import Floats, Ints

LIKE_FIRST, LIKE_SECOND = 0.6, 0.4
"""Separations from which on a set is said to see pairs as the model of one task alone does."""
MOST_PANELS = 16
"""Sets whose histograms are drawn; the numbers of the others are in the tables."""

_STEM = (
    'Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024'
)
_COLOURS = ("#4c78a8", "#e45756")


@dataclass(frozen=True, slots=True)
class _Apart:
    """How far the two vectors of each pair are from each other in a set, (n,) each.

    Args:
        distance: by the metric that is asked for.
        lengths: with what the lengths of the vectors alone would make it.
        angles: 1 - cos.
    """

    distance: Floats
    lengths: Floats
    angles: Floats


@dataclass(frozen=True, slots=True)
class _Reading:
    """Distances of the pairs in a subject.

    Args:
        model: name of the subject.
        sets: in each set that covers both fields.
        together: (n,) distances of the vectors of all these sets side by side.
    """

    model: str
    sets: dict[str, _Apart]
    together: Floats


@dataclass(frozen=True, slots=True)
class _Told:
    """What one set makes of contradictory pairs.

    Args:
        model: name of the subject.
        label: how plots call it.
        of_set: name of the set.
        normed: (n,) distances in it over their median.
        contrast: what they say.
        by_lengths: separation by the lengths of the vectors alone.
        by_angles: separation by their angles alone.
    """

    model: str
    label: Label
    of_set: str
    normed: Floats
    contrast: Contrast
    by_lengths: float
    by_angles: float

    @property
    def name(self) -> str:
        """On an axis."""
        return f"{self.label.short} · {self.of_set}"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the vectors.

    Args:
        fields: the two whose vectors are held against each other.
        metric: of the distances.
        alone: the models of one task, or None, which leaves the Diversity Index alone.
        labels: how plots call the models, by name.
    """

    fields: tuple[str, str]
    metric: Metric
    alone: Alone | None
    labels: Mapping[str, Label]


def contradiction_findings(
    subjects: Sequence[Subject], question: Question, progress: Progress
) -> Findings:
    """Contradictory pairs in every set, and the Diversity Index of models of several sets.

    Args:
        subjects: the models, those of one task among them.
        question: what is asked.
        progress: told of the passes.
    """
    fields, alone = question.fields, question.alone
    usable, missing = _usable(subjects, fields, alone)
    if not usable:
        return Findings((), (), missing)
    places = _places(usable[0], fields, progress)
    if places is None:
        missing.append(
            f"a row of {' or '.join(fields)} has no id or several, so there is no pair to tell; name two "
            "fields that hold one id each"
        )
        return Findings((), (), missing)
    readings = [_read(each, question, places, progress) for each in usable]
    by_name = {reading.model: reading for reading in readings}
    found = _diversity(readings, question, by_name)
    names = [] if alone is None else [alone.first.name, alone.second.name]
    if alone is not None and all(name in by_name for name in names):
        first, second = (by_name[name].together for name in names)
        pairs = contradictory_pairs(first, second)
        found = _contradictions(readings, question, pairs) + found
    return Findings((), (), missing) + found


def _usable(
    subjects: Sequence[Subject], fields: tuple[str, str], alone: Alone | None
) -> tuple[list[Subject], list[str]]:
    """Subjects with both fields in some set, on the same rows as the first of them, and why not others."""
    usable: list[Subject] = []
    missing = []
    order = [alone.first, alone.second] if alone else []
    order += [each for each in subjects if not any(each is other for other in order)]
    for subject in order:
        absent = [field for field in fields if field not in subject.spec.fields]
        if absent:
            missing.append(
                f"{subject.name} has no field {' and no field '.join(absent)}; its fields are "
                f"{', '.join(subject.spec.fields)}"
            )
            continue
        sets = split_sets(subject.spec, subject.recipe.model)[0]
        apart = [each.name for each in sets if not all(each.covers(field) for field in fields)]
        if apart:
            missing.append(
                f"{subject.name}: no distances in {', '.join(apart)}, which does not cover both "
                f"{' and '.join(fields)}"
            )
        if len(sets) - len(apart) < (1 if alone else 2):
            continue  # there is nothing to hold one set against
        if usable and subject.num_rows != usable[0].num_rows:
            missing.append(
                f"{subject.name} was given {subject.num_rows} rows and {usable[0].name} "
                f"{usable[0].num_rows}; pairs are compared on the same rows only, so give their recipes "
                "the same split, or look at all rows"
            )
            continue
        usable.append(subject)
    return usable, missing


def _places(subject: Subject, fields: tuple[str, str], progress: Progress) -> Ints | None:
    """Rows at which the distinct pairs are met first; None where a row has no single id."""
    sample = PairSample()
    for rows in first_rows(subject, subject.num_rows, "pairs", progress):
        first, second = (one_id(rows.fields[field]) for field in fields)
        if first is None or second is None:
            return None
        sample.update(first, second)
    return sample.places()


def _read(subject: Subject, question: Question, places: Ints, progress: Progress) -> _Reading:
    """The distances of the pairs in every set, in one pass."""
    fields, metric = question.fields, question.metric
    sets = split_sets(subject.spec, subject.recipe.model)[0]
    columns = [
        (at, each.name, [subject.spec.fields_of(each).index(field) for field in fields])
        for at, each in enumerate(sets)
        if all(each.covers(field) for field in fields)
    ]
    parts: dict[str, list[tuple[Floats, ...]]] = {name: [] for _, name, _ in columns}
    together: list[Floats] = []
    done = 0
    for sample in first_rows(subject, subject.num_rows, "distances", progress):
        stop = done + len(sample.labels)
        low, high = np.searchsorted(places, [done, stop])
        rows = torch.from_numpy(places[low:high] - done)
        both = []
        for at, name, (one, other) in columns:
            vectors = sample.inputs.sets[at][rows]
            both.append((vectors[:, one], vectors[:, other]))
            apart = (
                distances(*both[-1], metric),
                lengths(*both[-1]),
                distances(*both[-1], "cosine"),
            )
            parts[name].append(tuple(kind.numpy() for kind in apart))
        whole = [torch.cat(each, 1) for each in zip(*both, strict=True)]
        together.append(distances(whole[0], whole[1], metric).numpy())
        done = stop
    return _Reading(
        subject.name,
        {
            name: _Apart(*(np.concatenate(kind) for kind in zip(*each, strict=True)))
            for name, each in parts.items()
        },
        np.concatenate(together),
    )


def _contradictions(
    readings: Sequence[_Reading], question: Question, pairs: Contradictions
) -> Findings:
    alone = question.alone
    assert alone is not None
    counts = (int(pairs.far_in_first.sum()), int(pairs.far_in_second.sum()))
    total = len(pairs.far_in_first)
    if not all(counts):
        return Findings(
            missing=[
                f"among {total} pairs there is none that is far for {alone.tasks[0]} and near for "
                f"{alone.tasks[1]}, or none the other way round; look at more rows"
            ]
        )
    told = []
    for reading in readings:
        for name, of_set in reading.sets.items():
            normed = in_medians(of_set.distance)
            alone_by = [
                contrast(each, pairs).separation for each in (of_set.lengths, of_set.angles)
            ]
            label = question.labels[reading.model]
            found = contrast(normed, pairs)
            told.append(_Told(reading.model, label, name, normed, found, *alone_by))
    singles = (alone.first.name, alone.second.name)
    sentences = [
        f"Of {total} distinct pairs {counts[0]} are far for {alone.tasks[0]} and near for "
        f"{alone.tasks[1]}, {counts[1]} the other way round, by the models of one task "
        f"{question.labels[singles[0]].short} and {question.labels[singles[1]].short}; unrelated tasks "
        f"would come to {SHARE**2:.0%} of all each."
    ]
    sentences += [_sentence(each, alone) for each in told if each.model not in singles]
    plots = [
        _separations(told, alone, question.metric, total),
        _histograms(told, alone, pairs, question.metric),
    ]
    return Findings(sentences, plots)


def _sentence(told: _Told, alone: Alone) -> str:
    separation = told.contrast.separation
    as_alone = "tells the pairs of the two tasks apart as the model of {} alone does"
    verdict = "does not tell the pairs of the two tasks apart"
    if separation >= LIKE_FIRST:
        verdict = as_alone.format(alone.tasks[0])
    elif separation <= LIKE_SECOND:
        verdict = as_alone.format(alone.tasks[1])
    return (
        f"{told.label.short}: set `{told.of_set}` {verdict}, AUC {separation:.2f} (the lengths of its "
        f"vectors alone {told.by_lengths:.2f}, their angles alone {told.by_angles:.2f})."
    )


def _separations(told: Sequence[_Told], alone: Alone, metric: Metric, total: int) -> Plot:
    first, second = alone.tasks
    groups = [f"{kind}, far for {task}" for kind in ("mean", "median") for task in alone.tasks]
    columns = ("model", "set", "separation", "by lengths", "by angles", "Wasserstein-1", *groups)
    rows: list[tuple[Cell, ...]] = [
        (
            *(each.model, each.of_set, each.contrast.separation, each.by_lengths, each.by_angles),
            *(each.contrast.wasserstein, *each.contrast.means, *each.contrast.medians),
        )
        for each in told
    ]
    return Plot(
        title="What every set makes of contradictory pairs",
        shows=(
            f"1: the set puts pairs as the model of {first} alone does, 0: as that of {second} alone. Around "
            "1/2 it serves both and tells them apart for neither: entangled. Marks: what the lengths of the "
            "vectors and their angles do, each alone; lengths may speak of how much ids were trained."
        ),
        definition=(
            f"chance that a pair far for {first} and near for {second} is farther in the set than one the "
            f"other way round; far and near: the {SHARE:.0%} at either end of {total} distinct pairs by "
            f"{metric} distance in the models of one task. The AUC is our number for what the paper shows as "
            "distributions. By lengths: the same of sqrt(|u|^2 + |v|^2); by angles: of 1 - cos"
        ),
        source=_STEM,
        traces=_separation_traces(told),
        layout={
            "height": 160 + 28 * len(told),
            "barmode": "overlay",
            "xaxis": {"range": [0, 1], "title": {"text": f"0 as {second}, 1 as {first}"}},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "shapes": [_line_at(0.5)],
        },
        numbers=Numbers(columns, rows),
    )


def _separation_traces(told: Sequence[_Told]) -> list[dict[str, Any]]:
    """A bar for every set, in its model's colour, and marks of lengths and angles."""
    names = [each.name for each in told]
    bars: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": model,
            "model": next(each.label.number for each in told if each.model == model),
            "showlegend": False,
            "y": [each.name for each in told if each.model == model],
            "x": [each.contrast.separation for each in told if each.model == model],
        }
        for model in dict.fromkeys(each.model for each in told)
    ]
    marks = [
        ("lengths alone", "line-ns-open", [each.by_lengths for each in told]),
        ("angles alone", "diamond-open", [each.by_angles for each in told]),
    ]
    return bars + [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "marker": {"symbol": symbol, "size": 11, "color": "#888", "line": {"width": 2}},
            "y": names,
            "x": values,
        }
        for name, symbol, values in marks
    ]


def _line_at(x: float) -> dict[str, Any]:
    """A dashed line over the whole height."""
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": {"dash": "dot", "color": "#888"}, **ends}


def _histograms(told: Sequence[_Told], alone: Alone, pairs: Contradictions, metric: Metric) -> Plot:
    masks = (pairs.far_in_first, pairs.far_in_second)
    edges = shared_edges([each.normed[mask] for each in told for mask in masks])
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    names = [f"far for {one}" for one in alone.tasks]
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    for each in told:
        shares = [shares_of(each.normed[mask], edges).tolist() for mask in masks]
        rows += [
            (each.model, each.of_set, float(low), float(high), one, other)
            for low, high, one, other in zip(edges[:-1], edges[1:], *shares, strict=True)
        ]
        lines = [
            _step(name, colour, (centres, values), is_first=not panels)
            for name, colour, values in zip(names, _COLOURS, shares, strict=True)
        ]
        limits = {"range": [float(edges[0]), float(edges[-1])]}
        panels.append(Panel(each.name, lines, 90, limits, {"rangemode": "tozero", "nticks": 3}))
    traces, layout = stacked(panels[:MOST_PANELS])
    more = len(panels) - MOST_PANELS
    return Plot(
        title="Distances of contradictory pairs",
        shows=(
            "Two hills apart: the set knows whose pairs these are. Two hills in one place: it does not."
            + (f" {more} further sets are in the table." if more > 0 else "")
        ),
        definition=(
            f"{metric} distance of the two vectors of a pair over the set's median distance; share of the "
            f"pairs in each of {NUM_BINS} bins, which are the same for all sets"
        ),
        source=_STEM,
        traces=traces,
        layout={**layout, "legend": {"orientation": "h"}},
        numbers=Numbers(("model", "set", "from", "to", *names), rows),
    )


def _step(
    name: str, colour: str, points: tuple[list[float], list[float]], *, is_first: bool
) -> dict[str, Any]:
    """A histogram as a line of steps; the legend has it once."""
    return {
        "type": "scatter",
        "mode": "lines",
        "line": {"shape": "hvh", "color": colour, "width": 2},
        "name": name,
        "legendgroup": name,
        "showlegend": is_first,
        "x": points[0],
        "y": points[1],
    }


def _diversity(
    readings: Sequence[_Reading], question: Question, by_name: dict[str, _Reading]
) -> Findings:
    """The index of every model of several sets, and of the two models of one task against each other."""
    alone, labels = question.alone, question.labels
    indices: list[tuple[str, int, float]] = [
        (
            each.model,
            len(each.sets),
            diversity_index([of_set.distance for of_set in each.sets.values()]),
        )
        for each in readings
        if len(each.sets) > 1
    ]
    sentences = [
        f"{labels[model].short}: Diversity Index {index:.2f} of its {num_sets} sets; {SHARE**2:.2f} is what "
        f"sets come to whose orders are unrelated, 0 is one order, {SHARE:.1f} opposite ones."
        for model, num_sets, index in indices
    ]
    if alone is not None and {alone.first.name, alone.second.name} <= by_name.keys():
        both = [by_name[each.name].together for each in (alone.first, alone.second)]
        indices.append((f"{' and '.join(alone.tasks)}, each alone", 2, diversity_index(both)))
    if not indices:
        return Findings()
    count = len(readings[0].together)
    plot = Plot(
        title="Diversity Index",
        shows=(
            "How differently the sets of a model order the same pairs. The dotted line: orders that have "
            "nothing to do with each other."
        ),
        definition=(
            "mean, over ordered pairs of sets, of the share of pairs among the farthest "
            f"{SHARE:.0%} in one and the nearest {SHARE:.0%} in the other, on {count} pairs; this "
            "definition is ours: the paper's formula could not be read"
        ),
        source=(
            'named after Lin et al., "Crocodile: Cross Experts Covariance for Disentangled Learning in '
            'Multi-Domain Recommendation", 2024'
        ),
        traces=[
            {
                "type": "bar",
                "orientation": "h",
                "y": [labels[name].short if name in labels else name for name, *_ in indices],
                "x": [each[2] for each in indices],
            }
        ],
        layout={
            "height": 120 + 30 * len(indices),
            "xaxis": {"range": [0, SHARE]},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "shapes": [_line_at(SHARE**2)],
        },
        numbers=Numbers(("model", "sets", "index"), indices),
    )
    return Findings(sentences, [plot])
