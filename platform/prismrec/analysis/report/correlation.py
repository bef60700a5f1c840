"""The chapter on histories: what they say of the label in the data, and what models make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prismrec.analysis.correlation import (
    Counts,
    LearnedMap,
    Question,
    Scores,
    count_behaviours,
    learned_map,
    min_max,
    question_of,
    score,
    table_map,
    tells_apart,
)
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.report.labels import Label, labels_of
from prismrec.analysis.subject import Progress, Subject
from prismrec.config import UserError
from prismrec.train.metrics.arrays import Floats

TIN = "Zhou et al., Temporal Interest Network for User Response Prediction, WWW 2024"
MEAN_OF = 5
"""Target categories that a model's score is the mean of, the most frequent."""
WEAK = 0.3
"""Score, up or down, below which a model is said to follow the data hardly."""
ACROSS = 2
"""Heat maps in a row of the page."""
_OF_DATA = "#8b949e"
_PANEL = 330
"""Pixels that a row of heat maps is high."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What histories are held against.

    Args:
        data: the data set whose rows are counted.
        question: columns, label and rows; what the first model with a sequence suggests if not given.
        target: id of the target category that is drawn; the most frequent one if not given.
    """

    data: str
    question: Question | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class _Learned:
    """What one model makes of histories.

    Args:
        name: the model's.
        label: how plots and sentences call it.
        map: from its rows, by category; `items` the same of behaviours as they are, `tables` from the
            vectors of categories and positions.
        scores: of `map`; `of_items` and `of_tables` likewise.
        of_sets: scores of `map` by set.
    """

    name: str
    label: Label
    map: LearnedMap
    scores: Scores
    of_items: Scores
    of_tables: Scores
    of_sets: dict[str, Scores]


def correlation_chapter(subjects: Sequence[Subject], asked: Asked, progress: Progress) -> Chapter:
    """Mutual information of behaviours and labels beside what each model makes of behaviours.

    Args:
        subjects: models; those that read no such history are left out.
        asked: data and columns.
        progress: told how far it is.

    Raises:
        UserError: a column is missing, or no row is left, of the target category or at all.
    """
    suggested = (question_of(each) for each in subjects)
    question = asked.question or next((each for each in suggested if each is not None), None)
    title = "Behaviours and targets"
    if question is None:
        return Chapter("correlation", title, (), (), (_NO_SEQUENCE,))
    if asked.target is not None:
        question = replace(question, also=(asked.target,))
    counts = count_behaviours(question, asked.data, progress)
    truth = counts.information()
    at = 0 if asked.target is None else counts.categories.tolist().index(asked.target)
    learned: list[_Learned] = []
    missing: list[str] = []
    labels = labels_of(subjects)
    for each in subjects:
        try:
            found = _measured(each, labels[each.name], question, (counts, truth), progress)
        except UserError as error:
            missing.append(f"{labels[each.name].short}: {error.message}.")
            continue
        if found is not None:
            learned.append(found)
    if not learned and not missing:
        missing.append(_NO_SEQUENCE)
    plots = [
        _heat_maps(question, counts, truth, learned, at),
        _lines(question, counts, truth, learned, at),
    ]
    if learned:
        plots.append(_bars(question, counts, learned))
    is_told = any(_tells_positions(counts)[:MEAN_OF])
    told = _told_of_truth(question, counts, truth, is_told)
    told += [_told(each, is_told) for each in learned]
    if not counts.is_supported()[at, at].all():
        missing.append(_few(question, counts, at))
    missing += _not_told_apart(question, counts)
    return Chapter("correlation", title, told, plots, missing)


_NO_SEQUENCE = (
    "No model reads the history as a sequence, so there is nothing to hold against the data: give one "
    "`features.sequences` and `model.sequence`, see docs/sequences.md."
)


def _measured(
    subject: Subject,
    label: Label,
    question: Question,
    data: tuple[Counts, Floats],
    progress: Progress,
) -> _Learned | None:
    """Maps and scores of a model; None where it reads no such history.

    Raises:
        UserError: its module is of a kind that is not known, or its rows lack a category.
    """
    counts, truth = data
    categories = counts.categories
    found = learned_map(subject, question, categories, progress)
    if found is None:
        return None
    items = learned_map(subject, question, categories, progress, of="behaviours")
    tables = table_map(subject, question, categories)
    assert items is not None
    assert tables is not None
    return _Learned(
        name=subject.name,
        label=label,
        map=found,
        scores=score(truth, found.published()),
        of_items=score(truth, items.published()),
        of_tables=score(truth, tables.published()),
        of_sets={each: score(truth, found.published(each)) for each in found.sets},
    )


def _heat_maps(
    question: Question, counts: Counts, truth: Floats, learned: Sequence[_Learned], at: int
) -> Plot:
    panels = [("data", "data", truth[at])]
    for each in learned:
        panels.append((each.label.short, each.name, each.map.published()[at]))
    rows = [f"{each}" for each in counts.categories.tolist()]
    columns = list(range(1, counts.positions + 1))
    traces = [
        {
            "type": "heatmap",
            "x": columns,
            "y": rows,
            "z": _cells(min_max(values)),
            "zmin": 0,
            "zmax": 1,
            "showscale": False,
            "xaxis": f"x{number + 1}" if number else "x",
            "yaxis": f"y{number + 1}" if number else "y",
            "hovertemplate": f"{name}<br>category %{{y}}, position %{{x}}<br>%{{z:.3f}}<extra></extra>",
        }
        for number, (_, name, values) in enumerate(panels)
    ]
    target = counts.categories[at]
    return Plot(
        f"What histories say where the target is {question.target} {target}",
        f"Rows are categories of behaviours, the target's own is {target}; position 1 is the newest. Bright "
        "is the most, dark the least. A model that has understood histories shows the picture of the data; "
        "one that knows no time shows rows of one colour.",
        f"Data: mutual information of `{question.label}` and a behaviour of the category at the position. "
        "Models: softmax over the map of the standardised attention logit, times the length of the "
        "vector that is summed; each category by its mean vector. Each picture from its least to its "
        "largest number.",
        f"{TIN}, section 2 and figure of learned correlation",
        traces,
        _panels([title for title, _, _ in panels], counts.positions),
        _map_numbers(question, counts, truth, learned),
    )


def _panels(names: Sequence[str], positions: int) -> dict[str, Any]:
    """A layout with a pair of axes for each of some heat maps, `ACROSS` in a row, named above."""
    down = -(-len(names) // ACROSS)
    layout: dict[str, Any] = {"height": _PANEL * down + 60, "annotations": []}
    for number, name in enumerate(names):
        suffix = str(number + 1) if number else ""
        left, top = number % ACROSS / ACROSS, 1 - number // ACROSS / down
        domain = [left + 0.07, left + 1 / ACROSS - 0.01] if len(names) > 1 else [0.0, 1.0]
        layout[f"xaxis{suffix}"] = {
            "domain": domain,
            "anchor": f"y{suffix}",
            "tick0": 1,
            "dtick": max(1, positions // 3),
            "title": {"text": "position"},
        }
        layout[f"yaxis{suffix}"] = {
            "domain": [top - 0.78 / down, top - 0.08 / down],
            "anchor": f"x{suffix}",
            "autorange": "reversed",
            "type": "category",
        }
        layout["annotations"].append(
            {
                "text": name,
                "x": sum(domain) / 2,
                "y": top - 0.07 / down,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
    return layout


def _map_numbers(
    question: Question, counts: Counts, truth: Floats, learned: Sequence[_Learned]
) -> Numbers:
    """Every cell of every target category."""
    columns = (
        *("target", "behaviour", "position", "mutual information, bits"),
        *(f"rows with it, {question.label} 0", f"rows with it, {question.label} 1"),
        "enough rows",
        *(f"{each.name}: {kind}" for each in learned for kind in ("map", "behaviours seen")),
    )
    maps = [(each.map.published(), each.map.support) for each in learned]
    enough = counts.is_supported()
    rows: list[tuple[Cell, ...]] = []
    for cell in np.ndindex(truth.shape):
        target, behaviour, position = cell
        of_models: list[Cell] = []
        for values, support in maps:
            assert support is not None
            of_models += [_cell(float(values[cell])), int(support[cell])]
        negatives, positives = counts.behaviours[cell].tolist()
        rows.append(
            (
                *(int(counts.categories[target]), int(counts.categories[behaviour]), position + 1),
                *(float(truth[cell]), negatives, positives, "yes" if enough[cell] else "no"),
                *of_models,
            )
        )
    return Numbers(columns, rows)


def _lines(
    question: Question, counts: Counts, truth: Floats, learned: Sequence[_Learned], at: int
) -> Plot:
    named: list[tuple[str, Floats, _Learned | None]] = [("data", truth, None)]
    named += [(each.name, each.map.published(), each) for each in learned]
    positions = list(range(1, counts.positions + 1))
    traces, rows = [], []
    for name, values, model in named:
        row = values[at, at]
        most = np.abs(row[~np.isnan(row)]).max(initial=0)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name if model is None else model.label.short,
            "x": positions,
            "y": _cells(row / most if most else row),
        }
        if model is None:
            trace["line"] = {"width": 4, "dash": "dot", "color": _OF_DATA}
        else:
            trace["model"] = model.label.number
        traces.append(trace)
        for target, category in enumerate(counts.categories.tolist()):
            own = values[target, target]
            rows += [
                (name, category, position, _cell(value))
                for position, value in zip(positions, own, strict=True)
            ]
    target = counts.categories[at]
    return Plot(
        f"How behaviours of the target's own category fade, {question.target} {target}",
        "The score of a model is how well its line follows that of the data, whatever its scale; a flat "
        "line is a model that knows no time.",
        "The row of the target's own category of the maps above, over its largest number.",
        TIN,
        traces,
        {
            "xaxis": {"title": {"text": "position, newest first"}, "dtick": 1},
            "yaxis": {"title": {"text": "share of the largest"}, "rangemode": "tozero"},
        },
        Numbers(("of", "target", "position", "number"), rows),
    )


def _bars(question: Question, counts: Counts, learned: Sequence[_Learned]) -> Plot:
    names = [str(each) for each in counts.categories.tolist()]
    traces = [
        {
            "type": "bar",
            "name": each.label.short,
            "model": each.label.number,
            "x": names,
            "y": _cells(each.scores.own),
        }
        for each in learned
    ]
    rows: list[tuple[Cell, ...]] = []
    told = _tells_positions(counts)
    for each in learned:
        for at, category in enumerate(counts.categories.tolist()):
            rows.append(
                (
                    *(each.name, category, int(counts.rows[at].sum())),
                    "yes" if told[at] else "no",
                    *(_cell(each.scores.own[at]), _cell(each.of_items.own[at])),
                    _cell(each.of_tables.own[at]),
                    *(_cell(each.scores.pearson[at]), _cell(each.scores.spearman[at])),
                    "; ".join(
                        f"{name} {scores.own[at]:.3f}" for name, scores in each.of_sets.items()
                    ),
                )
            )
    return Plot(
        "Score of every target category",
        "1: what a model makes of a behaviour goes with its position as what it says in the data does. 0: "
        "it makes nothing of the position. Below 0: it favours the positions that say less.",
        "Pearson correlation over positions of the row of the target's own category, of model and data; 0 "
        "where a row is constant. Beside it in the numbers: behaviours by their own vectors instead of "
        "their category's mean, vectors of categories and positions alone as in the released code, "
        "and correlations of whole maps.",
        f"{TIN}, table of correlation; the formula is inferred from its published maps",
        traces,
        {
            "xaxis": {"type": "category", "title": {"text": f"{question.target} of the target"}},
            "yaxis": {"range": [-1, 1], "title": {"text": "score"}},
            "barmode": "group",
        },
        Numbers(
            (
                *("model", "target", "rows", "data tell positions apart"),
                *("score", "score of items", "score of tables"),
                *("whole map, Pearson", "whole map, Spearman", "score by set"),
            ),
            rows,
        ),
    )


def _told_of_truth(question: Question, counts: Counts, truth: Floats, is_told: bool) -> list[str]:
    """What the data say, in words; `is_told`: whether some of them tell positions apart."""
    own = truth[np.arange(len(truth)), np.arange(len(truth))][:MEAN_OF].mean(0)
    if not own[0]:
        return [
            f"A newest behaviour of the target's own `{question.target}` says nothing of "
            f"`{question.label}` in these rows."
        ]
    others = truth[:MEAN_OF, :, 0].sum(1) - truth[:MEAN_OF, :MEAN_OF, 0].diagonal()
    count = max(len(truth) - 1, 1)
    ratio = own[0] / max(float(others.mean()) / count, 1e-12)
    fades = f"at position {counts.positions} {own[-1] / own[0]:.0%} of that is left"
    if not is_told:
        fades = "older ones, up to chance, say as much"
    return [
        f"In all rows of the data set, a newest behaviour of the target's own `{question.target}` says "
        f"{own[0]:.4f} bits of `{question.label}`, {_times(ratio)} what one of another category says; {fades}."
    ]


def _tells_positions(counts: Counts) -> list[bool]:
    """(K,) whether the target's own category says more at some positions than at others, beyond chance.

    Too few rows never do: their standard errors cannot be relied on.
    """
    bits, errors = counts.information(), counts.standard_error()
    enough = counts.is_supported(each=0)[:, 0, 0]
    return [bool(enough[c]) and tells_apart(bits[c, c], errors[c, c]) for c in range(len(bits))]


def _not_told_apart(question: Question, counts: Counts) -> list[str]:
    told = _tells_positions(counts)[:MEAN_OF]
    ids = counts.categories[:MEAN_OF].tolist()
    listed = ", ".join(str(each) for each, is_told in zip(ids, told, strict=True) if not is_told)
    if not listed:
        return []
    return [
        f"Of {question.target} {listed} the data do not tell positions apart beyond chance, so that a score "
        "there says nothing: look at more data, or take it that the order of these behaviours does not matter."
    ]


def _told(each: _Learned, is_told: bool) -> str:
    """How well a model follows the data, in words; `is_told`: whether these tell positions apart."""
    name, mean = each.label.short, each.scores.mean(MEAN_OF)
    count = min(MEAN_OF, len(each.map.categories))
    said = f"score {mean:.2f}, mean of the {count} most frequent target categories"
    if math.isnan(mean):
        return f"{name}: too few behaviours in its rows for a score; look at more rows."
    if not is_told:
        return f"{name}: the data do not tell positions apart, so that its score says nothing ({said})."
    if not np.nan_to_num(each.scores.own[:MEAN_OF]).any():
        return f"{name} makes nothing of the position of a behaviour: {said}."
    if abs(mean) < WEAK:
        return f"{name} hardly follows the data over positions: {said}."
    if mean < 0:
        return f"{name} weighs positions against what the data say: {said}."
    best = max(each.of_sets, key=lambda of_set: each.of_sets[of_set].mean(MEAN_OF))
    of_sets = ""
    if len(each.of_sets) > 1:
        of_sets = f"; set `{best}` by itself {each.of_sets[best].mean(MEAN_OF):.2f}"
    return f"{name} follows the data over positions: {said}{of_sets}."


def _few(question: Question, counts: Counts, at: int) -> str:
    rows = int(counts.rows[at].sum())
    return (
        f"Of {question.target} {counts.categories[at]} there are {rows:,} rows, too few at some positions for "
        "its mutual information to be more than chance (700 rows and 50 of either label with the "
        "behaviour are needed): look at more data."
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{ratio:,.0f} times"


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cells(values: Floats) -> list[Any]:
    """Numbers as JSON has them, null for NaN."""
    if values.ndim > 1:
        return [_cells(row) for row in values]
    return [_cell(float(value)) for value in values]
