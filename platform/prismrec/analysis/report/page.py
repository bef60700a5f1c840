"""The report as one file: opens from disk, needs no network, and holds every number that it shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from prismrec.analysis.report.chapter import Cell, Chapter, Plot

MOST_TOLD = 5
"""Sentences of a chapter that the first page shows at once."""
MOST_SHOWN = 200
"""Rows of a plot's numbers that the page shows; the file to save has all of them."""

_LONGEST_NAME = 160
"""Letters of a file's name before its ending: many file systems end at 255 bytes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows.

    Args:
        title: of the page.
        models: names of the models, in the order of their colours.
        facts: what was looked at, each in a few words.
        chapters: at least one.
    """

    title: str
    models: Sequence[str]
    facts: Sequence[str]
    chapters: Sequence[Chapter]


def page(report: Report) -> str:
    """The whole HTML document. Names from recipes and data are escaped wherever they stand."""
    plots = [(chapter, plot) for chapter in report.chapters for plot in chapter.plots]
    data = {"plots": [_plot_data(chapter, plot) for chapter, plot in plots]}
    places = {id(plot): number for number, (_, plot) in enumerate(plots)}
    folder = files("prismrec.analysis.report")
    parts = {
        "title": escape(report.title),
        "style": folder.joinpath("page.css").read_text("utf-8"),
        "script": folder.joinpath("page.js").read_text("utf-8"),
        "plotly": get_plotlyjs(),
        "names": "".join(
            f'<li><span class="dot" data-model="{at}"></span>{escape(name)}</li>'
            for at, name in enumerate(report.models)
        ),
        "facts": "".join(f"<li>{escape(fact)}</li>" for fact in report.facts),
        "tabs": "".join(_tabs(report.chapters)),
        "chapters": _summary(report.chapters)
        + "".join(_chapter(chapter, places) for chapter in report.chapters),
        # what stands between script tags must not close them
        "data": json.dumps(_finite(data), allow_nan=False).replace("<", "\\u003c"),
    }
    return Template(folder.joinpath("page.html").read_text("utf-8")).substitute(parts)


def csv_name(chapter: Chapter, plot: Plot) -> str:
    """The file name of a plot's numbers, of its own in the report.

    >>> from prismrec.analysis.report.chapter import Numbers
    >>> plot = Plot("IA(E_i -> E_j), set a", "", "", "", (), {}, Numbers((), ()))
    >>> csv_name(Chapter("collapse", "Collapse", (), [plot]), plot)
    'collapse-1-ia-e-i-e-j-set-a.csv'
    """
    place = next(number for number, each in enumerate(chapter.plots, 1) if each is plot)
    letters = (each if each.isascii() and each.isalnum() else " " for each in plot.title.lower())
    words = "".join(letters).split()
    return "-".join([chapter.key, str(place), *words])[:_LONGEST_NAME] + ".csv"


def _prose(text: str) -> str:
    """Escaped text, with names between backticks set as code.

    >>> _prose("`a<b` is 1")
    '<code>a&lt;b</code> is 1'
    """
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _tabs(chapters: Sequence[Chapter]) -> Iterator[str]:
    for key, title in [("summary", "Summary"), *((each.key, each.title) for each in chapters)]:
        yield (
            f'<a href="#{escape(key)}" role="tab" id="tab-{escape(key)}" '
            f'aria-controls="chapter-{escape(key)}" aria-selected="false">{escape(title)}</a>'
        )


def _section(key: str, inner: str) -> str:
    return (
        f'<section id="chapter-{escape(key)}" role="tabpanel" aria-labelledby="tab-{escape(key)}">'
        f"{inner}</section>"
    )


def _summary(chapters: Sequence[Chapter]) -> str:
    articles = []
    for chapter in chapters:
        first, rest = _listed(chapter.summary[:MOST_TOLD]), _listed(chapter.summary[MOST_TOLD:])
        more = (
            f"<details><summary>{len(chapter.summary) - MOST_TOLD} more</summary>{rest}</details>"
        )
        articles.append(
            f"<article><h2>{escape(chapter.title)}</h2>"
            + first
            + (more if rest else "")
            + _missing(chapter)
            + (f'<p><a href="#{escape(chapter.key)}">Plots</a></p>' if chapter.plots else "")
            + "</article>"
        )
    return _section("summary", "".join(articles))


def _listed(sentences: Sequence[str]) -> str:
    told = "".join(f"<li>{_prose(sentence)}</li>" for sentence in sentences)
    return f'<ul class="told">{told}</ul>' if told else ""


def _missing(chapter: Chapter) -> str:
    return "".join(f'<p class="missing">{_prose(sentence)}</p>' for sentence in chapter.missing)


def _chapter(chapter: Chapter, places: Mapping[int, int]) -> str:
    plots = "".join(_plot(plot, places[id(plot)]) for plot in chapter.plots)
    told = _listed(chapter.summary)
    told = f"<article>{told}</article>" if told else ""
    missing = f"<article>{_missing(chapter)}</article>" if chapter.missing else ""
    return _section(chapter.key, told + plots + missing)


def _plot(plot: Plot, place: int) -> str:
    numbers = plot.numbers
    head = "".join(f"<th>{escape(name)}</th>" for name in numbers.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in numbers.rows[:MOST_SHOWN]
    )
    left = len(numbers.rows) - MOST_SHOWN
    more = f"<p>{left:,} more rows are in the saved file.</p>" if left > 0 else ""
    return (
        f"<article><h3>{escape(plot.title)}</h3><p>{_prose(plot.shows)}</p>"
        f'<div class="plot" data-plot="{place}" role="img" aria-label="{escape(plot.title)}"></div>'
        f'<button type="button" data-save="{place}">Save the numbers (CSV)</button>'
        f"<details><summary>Numbers</summary>"
        f'<div class="numbers"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{more}</details>"
        f"<details><summary>How it is made</summary><p>{_prose(plot.definition)}</p>"
        f"<p>Source: {escape(plot.source)}</p></details></article>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{escape('' if value is None else str(value))}</td>"
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else _float(value)


def _float(value: float) -> str:
    return f'<td class="number">{value:.4g}</td>' if math.isfinite(value) else "<td></td>"


def _plot_data(chapter: Chapter, plot: Plot) -> dict[str, Any]:
    return {
        "traces": list(plot.traces),
        "layout": plot.layout,
        "numbers": {"columns": plot.numbers.columns, "rows": [list(r) for r in plot.numbers.rows]},
        "file": csv_name(chapter, plot),
    }


def _finite(value: Any) -> Any:
    """A copy without numbers that JSON lacks, which become null: a gap in a plot, an empty cell."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
