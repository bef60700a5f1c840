"""The chapter on dimensional collapse: how many dimensions tables, fields and layers really use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prismrec.analysis.collapse import MIN_ROWS
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.report.labels import labels_of
from prismrec.analysis.report.layer_collapse import layer_plot, layer_spectra
from prismrec.analysis.report.pair_collapse import pair_findings
from prismrec.analysis.subject import Progress, Subject
from prismrec.analysis.subject_spectra import Measured, by_rows, by_samples, looked_up

COLLAPSED_BELOW = 0.2
"""Share of the most possible information abundance below which a set of a table is called collapsed."""
ENERGY = 0.99
MOST_CELLS = 40
"""Tables or fields in a plot, those of most rows; the numbers have all."""
SHOWN_SPECTRA = 6
PAPER = "Guo et al., On the Embedding Collapse when Scaling up Recommendation Models, ICML 2024"
_ABUNDANCE = (
    "Information abundance is the sum of the singular values over the largest: 1 where all vectors lie "
    "on a line, at most the number of rows or the width, whichever is less. Cells show it as a share of "
    "that."
)


@dataclass(frozen=True, slots=True)
class Spectra:
    """What was measured of one model.

    Args:
        name: the model's.
        short: what sentences call it.
        tables: all sets of all tables, every row once.
        fields: all sets of all fields, rows as often as the sample looks them up.
    """

    name: str
    short: str
    tables: list[Measured]
    fields: list[Measured]


def measure(subject: Subject, short: str, progress: Progress) -> Spectra:
    """The spectra of a model's tables and fields."""
    seen = looked_up(subject, progress)
    tables, fields = by_rows(subject, progress), by_samples(subject, seen, progress)
    return Spectra(subject.name, short, tables, fields)


def collapse_chapter(subjects: Sequence[Subject], progress: Progress) -> Chapter:
    """How many dimensions the sets of every model use.

    Args:
        subjects: models, all shown side by side.
        progress: told how far it is.
    """
    labels = labels_of(subjects)
    spectra = [measure(each, labels[each.name].short, progress) for each in subjects]
    plots = [
        _heat_map(
            "Dimensions that tables use",
            "Dark cells are sets whose vectors lie close to few directions: width there is paid for "
            "and not used. Tables stand by their number of rows; small ones cannot fill a wide set.",
            "Every row for a known id counts once, also one that training never met, with the noise that "
            "it was drawn with, which looks like dimensions. " + _ABUNDANCE,
            [(each.name, each.tables) for each in spectra],
        ),
        _heat_map(
            "Dimensions that lookups use",
            "The same of what the model is really fed: frequent ids count more. A field far darker here "
            "than above spends its dimensions on rare ids.",
            "Rows count as often as the sample looks them up. " + _ABUNDANCE,
            [(each.name, each.fields) for each in spectra],
        ),
        _spectrum_lines(spectra),
        layer_plot(list(labels.items()), [layer_spectra(each, progress) for each in subjects]),
    ]
    told = [sentence for each in spectra for sentence in _told(each, len(spectra) > 1)]
    for each, found in zip(subjects, spectra, strict=True):
        more, of_pairs = pair_findings(each, found.short, found.tables)
        plots += more
        told += of_pairs
    return Chapter("collapse", "Dimensional collapse", _compared(spectra) + told, plots)


def _told(spectra: Spectra, is_one_of_many: bool) -> list[str]:
    """What a reader should know of one model, in words."""
    which = f"{spectra.short}: " if is_one_of_many else ""
    broken = [each for each in spectra.tables if not each.spectrum.is_finite]
    if not spectra.tables:
        return [f"{which}there are no vectors to look at, the model has weights of ids alone."]
    if broken:
        names = ", ".join(f"`{each.name}` in set `{each.set_name}`" for each in broken[:5])
        return [f"{which}{len(broken)} sets of tables hold numbers that are not finite: {names}."]
    judged = [each for each in spectra.tables if each.spectrum.rows >= MIN_ROWS]
    collapsed = sorted((e for e in judged if e.share < COLLAPSED_BELOW), key=lambda e: e.share)
    if not judged:
        return [f"{which}no table has {MIN_ROWS} rows, too few to speak of collapse."]
    by_lookups = _collapsed_lookups(spectra, which)
    if not collapsed:
        lowest = _described(min(judged, key=lambda each: each.share))
        return [f"{which}no set of a table is collapsed; of the lowest, {lowest}.", *by_lookups]
    sentences = [
        f"{which}{len(collapsed)} of {len(judged)} sets of tables are collapsed: they use less than "
        f"{COLLAPSED_BELOW:.0%} of the dimensions that they could."
    ]
    return sentences + [f"{which}{_described(each)}." for each in collapsed[:3]] + by_lookups


def _collapsed_lookups(spectra: Spectra, which: str) -> list[str]:
    """Fields whose lookups lie in few dimensions: rows that training never met hide that in the table."""
    low = [
        each
        for each in spectra.fields
        if each.spectrum.rows >= MIN_ROWS and each.share < COLLAPSED_BELOW
    ]
    low.sort(key=lambda each: each.share)
    if not low:
        return []
    named = ", ".join(
        f"`{each.name}` in set `{each.set_name}` {each.spectrum.information_abundance:.1f} of "
        f"{each.spectrum.bound}"
        for each in low[:3]
    )
    return [
        f"{which}what is looked up uses less than {COLLAPSED_BELOW:.0%} of its dimensions in {len(low)} sets "
        f"of fields: {named}."
    ]


def _described(each: Measured) -> str:
    found = each.spectrum
    if found.is_zero:
        return f"table `{each.name}` in set `{each.set_name}` is all zeros"
    held = found.dimensions(ENERGY)
    lies = "one direction" if held == 1 else f"{held} directions"
    return (
        f"table `{each.name}` in set `{each.set_name}` spans {found.information_abundance:.1f} of "
        f"{found.bound} dimensions, {ENERGY:.0%} of its energy in {lies}"
    )


def _compared(spectra: Sequence[Spectra]) -> list[str]:
    """Which model uses more of its dimensions, where there are several."""
    means = []
    for each in spectra:
        shares = [
            table.share
            for table in each.tables
            if table.spectrum.rows >= MIN_ROWS and table.spectrum.is_finite
        ]
        if shares:
            means.append((sum(shares) / len(shares), each.short))
    if len(means) < 2:
        return []
    means.sort(reverse=True)
    listed = ", ".join(f"{name} {share:.0%}" for share, name in means)
    return [f"Share of its possible dimensions that a set of a table uses, on average: {listed}."]


def _heat_map(
    title: str, shows: str, definition: str, models: Sequence[tuple[str, list[Measured]]]
) -> Plot:
    sizes = {each.name: each.cardinality for _, found in models for each in found}
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_CELLS]
    columns, share, text = [], [], []
    for at, (_, found) in enumerate(models):
        for set_name in dict.fromkeys(each.set_name for each in found):
            columns.append(f"{at + 1}: {set_name}" if len(models) > 1 else set_name)
            of_set = {each.name: each for each in found if each.set_name == set_name}
            share.append(
                [of_set[n].share if n in of_set and _has_shape(of_set[n]) else None for n in names]
            )
            text.append([_hover(of_set[n]) if n in of_set else "" for n in names])
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": [_label(name) for name in names],
        "z": _turned(share),
        "text": _turned(text),
        "hovertemplate": "%{y}, %{x}<br>%{text}<extra></extra>",
        "zmin": 0,
        "zmax": 1,
        "colorbar": {"title": {"text": "share"}, "thickness": 12},
    }
    layout = {
        "yaxis": {"autorange": "reversed", "dtick": 1},
        "xaxis": {"type": "category"},
        "height": max(320, 90 + 20 * len(names)),
    }
    return Plot(title, shows, definition, PAPER, [trace], layout, _numbers(models))


def _numbers(models: Sequence[tuple[str, list[Measured]]]) -> Numbers:
    columns = (
        *("model", "name", "set", "cardinality", "rows", "width", "information abundance"),
        *("share", "RankMe", "stable rank", "sum of singular values", "directions of 99 %"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *(model, each.name, each.set_name, each.cardinality, each.spectrum.rows, each.width),
            *(each.spectrum.information_abundance, each.share, each.spectrum.rank_me),
            *(each.spectrum.stable_rank, each.spectrum.nuclear_norm),
            each.spectrum.dimensions(ENERGY) if each.spectrum.is_finite else None,
        )
        for model, found in models
        for each in found
    ]
    return Numbers(columns, rows)


def _spectrum_lines(spectra: Sequence[Spectra]) -> Plot:
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for at, model in enumerate(spectra):
        ordered = sorted(model.tables, key=lambda each: -each.cardinality)
        for number, each in enumerate(ordered):
            logs = [value / math.log(10) for value in each.spectrum.normalised().tolist()]
            name = f"{each.name}, {each.set_name}"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"{at + 1}: {name}" if len(spectra) > 1 else name,
                    "x": list(range(1, len(logs) + 1)),
                    "y": [value if math.isfinite(value) else None for value in logs],
                    "visible": True if number < SHOWN_SPECTRA // len(spectra) + 1 else "legendonly",
                }
            )
            values = zip(logs, each.spectrum.sigma.tolist(), strict=True)
            rows += [
                (model.name, each.name, each.set_name, k, sigma, value if sigma else None)
                for k, (value, sigma) in enumerate(values, 1)
            ]
    layout = {
        "xaxis": {"title": {"text": "k"}},
        "yaxis": {"title": {"text": "log10 of sigma_k / sigma_1"}},
        "legend": {"orientation": "v", "y": 1, "yanchor": "top"},
    }
    return Plot(
        "Singular spectra of tables",
        "A flat line uses all its dimensions; one that falls early lies in few of them. The largest "
        "tables are drawn; press a name to add or remove one.",
        "Singular values of all rows for known ids in a set, by way of the fp64 Gram matrix: values "
        "below 1e-7 of the largest drown in rounding and are left out.",
        PAPER,
        traces,
        layout,
        Numbers(("model", "table", "set", "k", "sigma", "log10 of sigma_k / sigma_1"), rows),
    )


def _has_shape(each: Measured) -> bool:
    """Whether there are two rows at least: a single one always fills its one dimension."""
    return each.spectrum.bound > 1


def _hover(each: Measured) -> str:
    found = each.spectrum
    return (
        f"{found.information_abundance:.2f} of {found.bound} dimensions<br>"
        f"{each.cardinality:,} rows, width {each.width}"
    )


def _label(name: str, longest: int = 22) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _turned(cells: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(row) for row in zip(*cells, strict=True)]
