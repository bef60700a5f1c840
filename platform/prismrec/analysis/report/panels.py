"""Several small plots in one, below each other, so that they are readable on a narrow screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_TITLE, _BETWEEN = 26, 46
"""Pixels above a panel for its title, and below for the ticks."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the small plots.

    Args:
        title: what stands above it.
        traces: Plotly traces without axes.
        height: pixels of its drawing area.
        x: layout of its x axis.
        y: layout of its y axis.
    """

    title: str
    traces: Sequence[dict[str, Any]]
    height: int
    x: dict[str, Any] = field(default_factory=dict)
    y: dict[str, Any] = field(default_factory=dict)


def stacked(panels: Sequence[Panel]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The traces and the layout of panels below each other, the first one on top.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("at least one panel is needed")
    total = sum(panel.height + _TITLE + _BETWEEN for panel in panels)
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"height": total, "annotations": []}
    top = 0
    for number, panel in enumerate(panels, 1):
        ending = "" if number == 1 else str(number)
        top += _TITLE
        domain = [1 - (top + panel.height) / total, 1 - top / total]
        layout[f"xaxis{ending}"] = {"anchor": f"y{ending}", **panel.x}
        layout[f"yaxis{ending}"] = {"anchor": f"x{ending}", "domain": domain, **panel.y}
        traces += [
            {**trace, "xaxis": f"x{ending}", "yaxis": f"y{ending}"} for trace in panel.traces
        ]
        layout["annotations"].append(
            {
                "text": panel.title,
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": domain[1],
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
        top += panel.height + _BETWEEN
    return traces, layout


def heat_panel(
    title: str, values: Sequence[Sequence[float | None]], x: Sequence[str], y: Sequence[str]
) -> Panel:
    """A heat map of shares, 0 to 1, whose first row is on top and whose cells say their numbers.

    Args:
        title: what stands above it.
        values: a row for each of `y`; None for an empty cell.
        x: names of the columns.
        y: names of the rows.
    """
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in values],
        "x": list(x),
        "y": list(y),
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "hovertemplate": "%{y}, %{x}: %{z:.3f}<extra></extra>",
    }
    if len(x) <= 8:
        trace["texttemplate"] = "%{z:.2f}"
    return Panel(
        title,
        [trace],
        height=max(60, 26 * len(y)),
        x={"type": "category"},
        y={"type": "category", "autorange": "reversed", "automargin": True},
    )
