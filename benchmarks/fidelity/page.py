"""A study's results as numbers over seeds, as a page and as plots."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.fidelity.study import Column, Study, Variant
from benchmarks.machine import sentence

MARK = "<!-- Below: written by hand, and kept when the page is written anew. -->"
_COLOURS = ("#2f81f7", "#d29922", "#3fb950", "#f85149", "#a371f7", "#9a6700", "#39c5cf", "#7d8590")
_TEXT = "#7d8590"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of one variant over its seeds.

    Args:
        mean: over the seeds.
        spread: their standard deviation, 0 of a single seed.
        count: seeds.
    """

    mean: float
    spread: float
    count: int


class Results:
    """Finished runs of a study.

    Args:
        study: what was compared.
        runs: by variant, one of each seed.
    """

    def __init__(self, study: Study, runs: dict[str, list[dict[str, Any]]]) -> None:
        self.study, self.runs = study, runs

    def cell(self, variant: Variant, column: Column) -> Cell | None:
        """The number of a column, or None where no run has it."""
        values = self._values(variant, column.metric)
        if column.over and values:
            base = self._base(variant, column)
            if base is None or variant.line == column.over:
                return None
            values = [value - base for value in values]
        if not values:
            return None
        values = [column.scale * value for value in values]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return Cell(statistics.mean(values), spread, len(values))

    def _base(self, variant: Variant, column: Column) -> float | None:
        """Mean of the group that a column is over, at the same block and place."""
        values = [
            value
            for other in self.study.variants
            if (other.line, other.block) == (column.over, variant.block)
            and other.at in (variant.at, None)
            for value in self._values(other, column.metric)
        ]
        return statistics.mean(values) if values else None

    def _values(self, variant: Variant, metric: str) -> list[float]:
        runs = self.runs.get(variant.name, [])
        return [
            run["metrics"].get(metric, run.get(metric))
            for run in runs
            if metric in run["metrics"] or metric in run
        ]


def markdown(results: Results, about: dict[str, Any], kept: str) -> str:
    """The page.

    Args:
        results: what was measured.
        about: `command`, `machine`, `wanted` number of runs.
        kept: what was written by hand below the mark of the page before, or "".
    """
    study = results.study
    done = [run for runs in results.runs.values() for run in runs]
    commits = sorted({run["commit"] for run in done})
    counts = f"{len(done)} runs of {about['wanted']}"
    lines = [
        f"# {study.title}",
        "",
        f"`{about['command']}`, {sentence(about['machine'])}. {counts}, one core each, fp32, "
        f"trained at commit {', '.join(commits)}. "
        "Numbers are means over seeds ± their standard deviation.",
        "",
        study.setup,
        "",
        "## What the papers say",
        "",
        study.claim,
        "",
        "## Numbers",
        "",
        *table(results),
        "",
        f"![plots of the table](fidelity_{study.name}.svg)",
        "",
        MARK,
        "",
    ]
    return "\n".join(lines) + (kept.strip() + "\n" if kept.strip() else "")


def table(results: Results) -> list[str]:
    """Lines of the table: a row of each variant that has run."""
    columns = results.study.columns
    lines = [
        "| variant | " + " | ".join(column.title for column in columns) + " |",
        "|" + " --- |" * (1 + len(columns)),
    ]
    for variant in results.study.variants:
        if results.runs.get(variant.name):
            cells = [_text(results.cell(variant, column), column) for column in columns]
            lines.append(f"| {variant.name} | " + " | ".join(cells) + " |")
    return lines


def kept_text(path: Path) -> str:
    """What was written by hand on a page, "" if there is no page."""
    return path.read_text().partition(MARK)[2] if path.exists() else ""


def plot(results: Results, path: Path) -> Path:
    """Draw the study's panels, a row for each block, as SVG."""
    study = results.study
    ran = [variant for variant in study.variants if results.runs.get(variant.name)]
    blocks = list(dict.fromkeys(variant.block for variant in ran))
    size = (4.6 * len(study.panels), 3.3 * len(blocks))
    style = {"svg.fonttype": "none", "svg.hashsalt": study.name, "text.color": _TEXT}
    style |= {f"{each}.color": _TEXT for each in ("xtick", "ytick")}
    style |= {"axes.labelcolor": _TEXT, "axes.edgecolor": _TEXT, "font.size": "9"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(blocks), len(study.panels), squeeze=False)
        for row, block in zip(grid, blocks, strict=True):
            for axes, panel in zip(row, study.panels, strict=True):
                column = next(each for each in study.columns if each.title == panel.column)
                _draw(axes, results, column, block)
                label = panel.label or panel.column
                axes.set_title(f"{label}, {block}" if block else label)
                axes.grid(alpha=0.25)
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
    return path


def _draw(axes: Axes, results: Results, column: Column, block: str) -> None:
    """Lines over `Variant.at`, or a dot of every variant where there is no such axis."""
    study = results.study
    of_block = [each for each in study.variants if each.block == block]
    points = [(v, c) for v in of_block if (c := results.cell(v, column)) is not None]
    if not study.across:
        names = [variant.name for variant, _ in points][::-1]
        cells = [cell for _, cell in points][::-1]
        axes.errorbar(
            [cell.mean for cell in cells],
            range(len(cells)),
            xerr=[cell.spread for cell in cells],
            fmt="o",
            color=_COLOURS[0],
            capsize=3,
        )
        axes.set_yticks(range(len(cells)), names)
        return
    for colour, line in enumerate(dict.fromkeys(each.line for each in of_block)):
        own = [(v.at, c) for v, c in points if v.line == line and v.at is not None]
        if own:
            axes.errorbar(
                [at for at, _ in own],
                [cell.mean for _, cell in own],
                yerr=[cell.spread for _, cell in own],
                marker="o",
                capsize=3,
                label=line,
                color=_COLOURS[colour % len(_COLOURS)],
            )
    if study.log_across:
        ticks = sorted({v.at for v, _ in points if v.at is not None})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axes.set_xlabel(study.across)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.3, fontsize=8)


def _text(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return ""
    sign = "+" if column.over else ""
    text = f"{cell.mean:{sign},.{column.digits}f}"
    if cell.count == 1 or not cell.spread:
        return text
    return f"{text} ± {cell.spread:,.{column.digits}f}"
