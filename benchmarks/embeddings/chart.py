"""A chart of the results: readable on light and dark pages, no library needed."""

from __future__ import annotations

import statistics
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.embeddings.page import PEERS, added

_WIDTH, _LEFT, _BAR, _GAP = 760, 190, 20, 8
_TEXT, _OURS, _OTHERS = "#7d8590", "#2f81f7", "#9a6700"
"""Grey, blue and brown that stand out on white and on black."""


def svg(document: dict[str, Any]) -> str:
    """Bars of every way's step at K = 4, and below them what each further set costs."""
    parts, top = _bars(document, 30)
    if document["curve"]:
        more, top = _added(document["curve"], top + 34)
        parts += more
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 8}" width="{_WIDTH}" '
        f'font-family="sans-serif" font-size="13" fill="{_TEXT}">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _bars(document: dict[str, Any], top: int) -> tuple[list[str], int]:
    """One bar for every way in the first case with the most usual number of sets."""
    rows = [row for row in document["rows"] if row["case"]["ranks"] == 1]
    first = next((row["case"] for row in rows if row["case"]["k"] == 4), rows[0]["case"])
    shown = [row for name in PEERS for row in rows if row["case"] == first and row["peer"] == name]
    longest = max(row["milliseconds"] for row in shown)
    title = (
        f"A training step of {document['tables']} tables x {first['k']} sets x {first['width']}, "
        f"{first['rows']:,} rows, batch {shown[0]['batch']:,}, milliseconds"
    )
    parts = [_text(0, top - 12, title, "start")]
    for row in shown:
        is_ours = row["peer"].startswith("ours")
        name = f"ours, {PEERS[row['peer']]}" if is_ours else PEERS[row["peer"]]
        length = round((_WIDTH - _LEFT - 70) * row["milliseconds"] / longest, 1)
        parts += [
            _text(_LEFT - 8, top + 14, name, "end"),
            _bar(top, _LEFT, length, is_ours),
            _text(_LEFT + length + 6, top + 14, f"{row['milliseconds']:.3g}", "start"),
        ]
        top += _BAR + _GAP
    return parts, top


def _added(curve: dict[str, Any], top: int) -> tuple[list[str], int]:
    """Two lines over K: milliseconds of a step, packed and separate."""
    height, right = 130, _WIDTH - 110
    counts = [point["k"] for point in curve["points"]]
    totals = {
        layout: [statistics.median(point[layout]) for point in curve["points"]]
        for layout in ("packed", "separate")
    }
    longest = max(max(each) for each in totals.values())
    step = (right - _LEFT) / max(1, len(counts) - 1)
    parts = [_text(0, top - 12, "The same over the number of sets, milliseconds", "start")]
    bottom = top + height
    for layout, colour in (("packed", _OURS), ("separate", _OTHERS)):
        points = [
            (round(_LEFT + step * index, 1), round(bottom - height * value / longest, 1))
            for index, value in enumerate(totals[layout])
        ]
        path = " ".join(f"{x},{y}" for x, y in points)
        each = statistics.median(added(curve, layout))
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
            _text(
                points[-1][0] + 8, points[-1][1] + 4, f"{layout} {totals[layout][-1]:.0f}", "start"
            ),
            _text(
                _LEFT - 8,
                top + (40 if layout == "packed" else 60),
                f"a set more, {layout}: {each:+.1f}",
                "end",
            ),
        ]
    parts += [
        _text(round(_LEFT + step * index, 1), bottom + 18, f"K = {count}", "middle")
        for index, count in enumerate(counts)
    ]
    return parts, bottom + 24


def _bar(top: float, left: float, length: float, is_ours: bool) -> str:
    colour = _OURS if is_ours else _OTHERS
    return f'<rect x="{left}" y="{top}" width="{length}" height="{_BAR}" rx="2" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
