"""What a report is made of: chapters, each with plots, what they show, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a plot, as a table that can be saved.

    Args:
        columns: their names.
        rows: a cell for each column.

    Raises:
        ValueError: a row has another number of cells.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(self.columns)} cells are needed, got {row}")


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with what a reader needs to understand it.

    Args:
        title: what is plotted, in a few words.
        shows: what to look for, in a sentence or two.
        definition: how the numbers are made, in a sentence.
        source: paper and section.
        traces: Plotly traces, as plain dictionaries of JSON values. `model`, the index of a model, gives a
            trace that model's colour; without it or a colour of its own it gets the page's.
        layout: Plotly layout, as a dictionary; the page adds fonts, colours and margins.
        numbers: what is plotted.
    """

    title: str
    shows: str
    definition: str
    source: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Chapter:
    """What one analysis found, for all models together.

    Args:
        key: short name, for addresses.
        title: name of its tab.
        summary: what was found, in plain words, the most telling first; each stands alone.
        plots: in the order of reading.
        missing: why something of it is not there, a sentence for each model or part.
    """

    key: str
    title: str
    summary: Sequence[str]
    plots: Sequence[Plot]
    missing: Sequence[str] = field(default=())
