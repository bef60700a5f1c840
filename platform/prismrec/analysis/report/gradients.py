"""The chapter on gradients: what losses still push in a trained model, and how steep the loss is around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prismrec.analysis.gradients import (
    CROSS_ENTROPY,
    EDGES,
    FIELD_ROWS,
    LABELS,
    OWN,
    LogitPushes,
    NamedLoss,
    Pushes,
    losses_of,
    measure_pushes,
)
from prismrec.analysis.landscape import Landscape, Slice, landscape
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.report.labels import Label, labels_of
from prismrec.analysis.subject import Progress, Subject

MOST_FIELDS = 30
"""Fields in a plot, those with the largest gradients; the numbers have all."""
FEW = 20
"""Rows of a bin below which it is not drawn."""
_RANKING = (
    "Lin et al., Understanding the Ranking Loss for Recommendation with Sparse User Feedback, KDD 2024, "
    "section 4"
)
_LANDSCAPE = "Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018, section 4"
_TIMES = (
    "Gradients are multiplied by the rows of their batch, so that a cross-entropy pushes a negative by its "
    "probability, whatever the batch; every row weighs 1."
)


@dataclass(frozen=True, slots=True)
class Gradients:
    """What was measured of one model.

    Args:
        name: the model's.
        label: the same in sentences and on axes.
        tasks: names of its tasks.
        pushes: of logits and field vectors.
        around: the loss around its weights.
    """

    name: str
    label: Label
    tasks: tuple[str, ...]
    pushes: Pushes
    around: Landscape

    def of(self, task: str, label: str) -> list[LogitPushes]:
        """Of one task's negatives or positives, by each loss."""
        return [e for e in self.pushes.logits if (e.task, e.label) == (task, label)]


def gradients_chapter(
    subjects: Sequence[Subject], progress: Progress, chosen: Slice | None = None
) -> Chapter:
    """How losses push every model, and the loss around its weights.

    Args:
        subjects: models, all shown side by side.
        progress: told how far it is.
        chosen: how the slice of the landscape is taken.
    """
    chosen = chosen or Slice()
    labels = labels_of(subjects)
    found = [
        Gradients(
            each.name,
            labels[each.name],
            tuple(each.recipe.task_names),
            measure_pushes(each, progress),
            landscape(each, _trained(each), chosen, progress),
        )
        for each in subjects
    ]
    tasks = dict.fromkeys(task for each in found for task in each.tasks)
    plots = [_means(found)]
    plots += [_by_probability(found, task) for task in tasks]
    plots += [_fields(each) for each in found if each.pushes.fields]
    plots.append(_lines(found))
    plots += [_map(each) for each in found]
    missing = [
        f"{each.label.short}: {sentence}." for each in found for sentence in each.pushes.missing
    ]
    missing += list(_without(found))
    told = [sentence for each in found for sentence in _told(each, len(found) > 1)]
    return Chapter("gradients", "Gradients", told + _compared(found), plots, missing)


def _trained(subject: Subject) -> list[NamedLoss]:
    """Cross-entropy, and behind it the loss that the model was trained with if it is another."""
    losses, _ = losses_of(subject.recipe)
    return [each for each in losses if each.name == CROSS_ENTROPY or each.is_own]


def _told(found: Gradients, is_one_of_many: bool) -> Iterator[str]:
    which = f"{found.label.short}: " if is_one_of_many else ""
    said = []
    for task in found.tasks:
        alone, beside = found.of(task, "negatives")[:2]
        positives = found.of(task, "positives")[0]
        if alone.rows and alone.mean:
            rate = positives.rows / (positives.rows + alone.rows)
            said.append(
                f"{alone.mean:.4f} for `{task}`, where {rate:.1%} of the rows are positives "
                f"({beside.mean / alone.mean:.1f} times as hard with pairs)"
            )
    if said:
        yield f"{which}cross-entropy pushes a negative, on average, by {', '.join(said)}."
    strongest = _strongest(found)
    if strongest is not None:
        set_name, field, length = strongest
        yield (
            f"{which}of the field vectors, `{field}` in set `{set_name}` is pushed hardest by "
            f"cross-entropy, {length:.4f} on average over tasks."
        )


def _strongest(found: Gradients) -> tuple[str, str, float] | None:
    totals: dict[tuple[str, str], float] = {}
    rows = {(each.task, each.label): each.rows for each in found.pushes.logits}
    for each in found.pushes.fields:
        if each.loss == CROSS_ENTROPY:
            all_rows = sum(rows[each.task, label] for label in LABELS) or 1
            share = rows[each.task, each.label] / all_rows / len(found.tasks)
            for field, length in each.by_field.items():
                key = (each.set_name, field)
                totals[key] = totals.get(key, 0.0) + share * length
    if not totals:
        return None
    key = max(totals, key=lambda each: totals[each])
    return (*key, totals[key])


def _compared(found: Sequence[Gradients]) -> list[str]:
    """How much the loss rises around the weights, of the flattest model first."""
    rises = []
    for each in found:
        grid = each.around.losses[CROSS_ENTROPY]
        centre = float(grid[len(grid) // 2, len(grid) // 2])
        rises.append((each.around.rise(CROSS_ENTROPY), each.label.short, centre))
    offsets = found[0].around.offsets
    step = float(offsets[1] - offsets[0])
    rises.sort()
    listed = ", ".join(
        f"{'of ' + name + ' ' if len(found) > 1 else ''}from {centre:.4f} by {rise:.4f}"
        for rise, name, centre in rises
    )
    return [
        f"Moving every row of the dense weights by {step:.0%} of its length in two random directions "
        f"raises the cross-entropy on average {listed}."
    ]


def _without(found: Sequence[Gradients]) -> Iterator[str]:
    for each in found:
        for task in each.tasks:
            for pushes in each.of(task, "positives")[:1] + each.of(task, "negatives")[:1]:
                if not pushes.rows:
                    yield (
                        f"{each.label.short}: the sample has no {pushes.label} of `{task}`, so there are no "
                        "pairs; take more rows, or another split."
                    )


def _means(found: Sequence[Gradients]) -> Plot:
    traces = []
    losses = dict.fromkeys(e.loss for model in found for e in model.pushes.logits)
    pairs = " and ".join(each for each in losses if each not in (CROSS_ENTROPY, OWN))
    for loss in losses:
        for label in LABELS:
            chosen = [
                (f"{model.label.short} · {e.task}" if len(found) > 1 else e.task, e.mean)
                for model in found
                for e in model.pushes.logits
                if (e.loss, e.label) == (loss, label) and e.rows
            ]
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{_brief(loss)}, {label}",
                    "y": [name for name, _ in chosen],
                    "x": [mean for _, mean in chosen],
                    "visible": True if label == "negatives" else "legendonly",
                }
            )
    rows: list[tuple[Cell, ...]] = [
        (model.name, e.task, e.loss, e.label, e.rows, e.mean)
        for model in found
        for e in model.pushes.logits
    ]
    return Plot(
        "How hard each loss pushes on average",
        "Under cross-entropy the negatives of rare positives are pushed by about the rate of positives, next "
        "to nothing; pairs push them harder. Press a name to see positives, which are pushed by almost 1.",
        f"Mean of the size of the gradient with respect to the logit, of cross-entropy (BCE) and {pairs}. "
        + _TIMES,
        _RANKING,
        traces,
        {
            "xaxis": {"type": "log", "dtick": 1, "title": {"text": "mean |dL/dz|"}},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "height": 160 + 36 * sum(len(each.tasks) for each in found),
        },
        Numbers(("model", "task", "loss", "label", "rows", "mean"), rows),
    )


def _by_probability(found: Sequence[Gradients], task: str) -> Plot:
    """Curves over the predicted probability."""
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for model in found:
        for number, each in enumerate(model.of(task, "negatives") + model.of(task, "positives")):
            traces.append(_curve(model, each, number, is_one_of_many=len(found) > 1))
            counts, means = each.bin_rows.tolist(), each.by_bin.tolist()
            rows += [
                (model.name, task, each.loss, each.label, *edges, count, mean if count else None)
                for edges, count, mean in zip(_bins(), counts, means, strict=True)
            ]
    return Plot(
        f"Gradients of {task} by predicted probability",
        "Left: rows that the model thinks unlikely. A line that falls to the left leaves such negatives "
        "alone; cross-entropy does, and pairs do less. Press a name to see positives: all losses should "
        "push hardest those that the model thinks unlikely.",
        f"Mean size of the gradient of the logit in bins of the predicted probability, with {FEW} rows or "
        "more. " + _TIMES,
        _RANKING,
        traces,
        {
            "xaxis": {"type": "log", "dtick": 1, "title": {"text": "predicted probability"}},
            "yaxis": {"type": "log", "dtick": 1, "title": {"text": "mean |dL/dz|"}},
        },
        Numbers(("model", "task", "loss", "label", "from p", "to p", "rows", "mean"), rows),
    )


def _curve(
    model: Gradients, pushes: LogitPushes, number: int, *, is_one_of_many: bool
) -> dict[str, Any]:
    """A line over the bins with enough rows; models by colour and losses by dashes."""
    bins = zip(_bins(), pushes.bin_rows.tolist(), pushes.by_bin.tolist(), strict=True)
    drawn = [
        (math.sqrt(low * high), count, mean) for (low, high), count, mean in bins if count >= FEW
    ]
    name = _brief(pushes.loss) + (", positives" if pushes.label == "positives" else "")
    style: dict[str, Any] = {}
    if is_one_of_many:
        name = f"{model.label.short}: {name}"
        dashes = ("solid", "dash", "dot", "dashdot")
        style = {"model": model.label.number, "line": {"dash": dashes[number % len(dashes)]}}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [centre for centre, _, _ in drawn],
        "y": [mean for _, _, mean in drawn],
        "text": [f"{count:,} rows" for _, count, _ in drawn],
        "visible": True if pushes.label == "negatives" else "legendonly",
        **style,
    }


def _brief(loss: str) -> str:
    """A loss in legends."""
    return {CROSS_ENTROPY: "BCE", OWN: "own"}.get(loss, "BCE + pairs")


def _bins() -> list[tuple[float, float]]:
    """Lower and upper edge of every bin; the lowest stands a bin's width below its edge."""
    lowest = EDGES[0] * EDGES[0] / EDGES[1]
    return list(zip((lowest, *EDGES), (*EDGES, 1.0), strict=True))


def _fields(model: Gradients) -> Plot:
    chosen = [each for each in model.pushes.fields if each.label == "negatives"]
    size: dict[str, float] = {}
    for each in chosen:
        for field, length in each.by_field.items():
            size[field] = max(size.get(field, 0.0), length)
    shown = sorted(sorted(size, key=lambda field: -size[field])[:MOST_FIELDS])
    several_sets = len({each.set_name for each in chosen}) > 1
    columns, values = [], []
    for loss in dict.fromkeys(each.loss for each in chosen):
        for each in (each for each in chosen if each.loss == loss):
            of_set = f", {each.set_name}" if several_sets else ""
            columns.append(f"{_brief(loss)}, {each.task}{of_set}")
            values.append([each.by_field.get(field) for field in shown])
    rows: list[tuple[Cell, ...]] = [
        (each.loss, each.task, each.label, each.set_name, field, length)
        for each in model.pushes.fields
        for field, length in each.by_field.items()
    ]
    cells = [list(row) for row in zip(*values, strict=True)]
    return Plot(
        f"Gradients of field vectors on negatives, {model.label.short}",
        "Bright cells are vectors that a task still moves much. A field that is dark everywhere is not read, "
        "or has nothing left to learn here.",
        f"Mean length of the gradient of a field's vector, over {FIELD_ROWS:,} rows of the sample at most; the "
        "numbers have positives too. " + _TIMES,
        _RANKING,
        [{"type": "heatmap", "x": columns, "y": shown, "z": cells}],
        {
            "xaxis": {"type": "category", "automargin": True, "tickangle": -60},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "height": 240 + 16 * len(shown),
        },
        Numbers(("loss", "task", "label", "set", "field", "mean length"), rows),
    )


def _lines(found: Sequence[Gradients]) -> Plot:
    """The two axes of every slice, above the loss of the trained weights."""
    several = len(found) > 1
    traces: list[dict[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for model in found:
        grid, offsets = model.around.losses[CROSS_ENTROPY], model.around.offsets.tolist()
        at = len(offsets) // 2
        for number, values in enumerate((grid[:, at], grid[at])):
            rises = (values - grid[at, at]).tolist()
            direction = f"direction {number + 1}"
            style = {"model": model.label.number, "line": {"dash": ("solid", "dash")[number]}}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{model.label.short}, {direction}" if several else direction,
                    **(style if several else {}),
                    "x": offsets,
                    "y": rises,
                }
            )
            rows += [
                (model.name, number + 1, offset, value, rise)
                for offset, value, rise in zip(offsets, values.tolist(), rises, strict=True)
            ]
    return Plot(
        "How fast the loss rises around the weights",
        "A wide valley is a loss that forgives small changes of the weights; a steep one does not. A line "
        "that falls below 0 says that these rows would rather have other weights.",
        "Cross-entropy, the mean over tasks, above that of the trained weights. " + _MOVED,
        _LANDSCAPE,
        traces,
        {
            "xaxis": {"title": {"text": "share of each row's length"}},
            "yaxis": {"title": {"text": "rise of the loss"}},
        },
        Numbers(("model", "direction", "offset", "loss", "rise"), rows),
    )


_MOVED = (
    "Dense weights are moved along two random directions whose rows are as long as the weights' own; biases, "
    "scales of normalisations and tables stay."
)


def _map(model: Gradients) -> Plot:
    """The whole slice, of the model's own loss where it has one."""
    around = model.around
    loss = list(around.losses)[-1]
    offsets = [round(each, 6) for each in around.offsets.tolist()]
    rows: list[tuple[Cell, ...]] = [
        (name, offsets[a], offsets[b], float(grid[a, b]))
        for name, grid in around.losses.items()
        for a in range(len(offsets))
        for b in range(len(offsets))
    ]
    return Plot(
        f"Loss around the weights of {model.label.short}",
        "The trained weights are in the middle. The basin should be round and deepest there.",
        f"{loss[0].upper()}{loss[1:]}, the mean over tasks, on {around.rows:,} rows of the sample. {_MOVED}",
        _LANDSCAPE,
        [{"type": "heatmap", "x": offsets, "y": offsets, "z": around.losses[loss].tolist()}],
        {
            "xaxis": {"title": {"text": "direction 2"}},
            "yaxis": {"title": {"text": "direction 1"}},
            "height": 460,
        },
        Numbers(("loss", "direction 1", "direction 2", "value"), rows),
    )
