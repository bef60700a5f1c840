"""Of the chapter on entanglement: whether the losses of tasks pull the same vectors different ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from prismrec.analysis.passes import first_rows
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.report.findings import Findings
from prismrec.analysis.report.labels import Label
from prismrec.analysis.subject import Progress, Subject
from prismrec.analysis.task_gradients import Conflict, TaskLosses, conflicts
from prismrec.embeddings.sets import EmbeddingSet, EmbeddingSpec
from prismrec.models.assembly import split_sets
from prismrec.models.objectives import build_decoder
from prismrec.models.objectives.build import task_loss

ROWS = 20_000
"""Rows that gradients are taken on, the first ones."""
MOST_TASKS = 6
"""Tasks that are compared, the first ones."""

CLEAR = 0.05
"""Size of a cosine from which on it is said to point somewhere."""

_SOURCE = (
    'Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, section 2; sets of a task\'s own: '
    'Su et al., "STEM", AAAI 2024'
)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two tasks in a set of a subject.

    Args:
        model: name of the subject.
        short: the same in sentences and on axes.
        of_set: name of the set.
        tasks: names of the two.
        places: positions of the two.
        by_table: how their gradients lie, by table, and under `""` in the whole set.
    """

    model: str
    short: str
    of_set: str
    tasks: tuple[str, str]
    places: tuple[int, int]
    by_table: dict[str, Conflict]

    @property
    def label(self) -> str:
        """Name on an axis."""
        return f"{self.short} · {self.of_set}"

    @property
    def versus(self) -> str:
        """The two tasks."""
        return " × ".join(self.tasks)

    @property
    def idle(self) -> list[str]:
        """Those of the two whose loss does not reach the set."""
        return [
            name
            for name, at in zip(self.tasks, self.places, strict=True)
            if not self.by_table[""].has_gradient(at)
        ]

    def cosine(self, table: str = "") -> float | None:
        """Of all rows."""
        return self.by_table[table].cosine(*self.places)

    def share_against(self, table: str = "") -> float | None:
        """Of the rows on which both have a gradient."""
        return self.by_table[table].share_against(*self.places)

    def rows(self, table: str = "") -> int:
        """On which both have a gradient."""
        return int(self.by_table[table].rows[self.places])


def conflict_findings(
    subjects: Sequence[Subject], labels: Mapping[str, Label], progress: Progress
) -> Findings:
    """Cosines of the tasks' gradients in every set and table of every model of several tasks.

    Args:
        subjects: the models.
        labels: how plots call them, by name.
        progress: told of the passes.
    """
    pairs: list[_Pair] = []
    missing: list[str] = []
    for subject in subjects:
        tasks = subject.recipe.task_names
        if len(tasks) < 2:
            continue
        if not split_sets(subject.spec, subject.recipe.model)[0]:
            missing.append(f"{subject.name} reads no embedding set, so no gradient reaches one")
            continue
        if len(tasks) > MOST_TASKS:
            missing.append(
                f"{subject.name} has {len(tasks)} tasks; gradients of the first {MOST_TASKS} were held "
                "against each other"
            )
        pairs += _pairs(subject, labels[subject.name].short, progress)
    if not pairs:
        missing.append(
            "no model has two tasks or more whose gradients could be compared; pass one that has"
        )
        return Findings((), (), missing)
    plots = (_cosines(pairs), _shares(pairs), _tables(pairs))
    return Findings(tuple(_summary(pairs)), plots, missing)


def _pairs(subject: Subject, short: str, progress: Progress) -> Iterator[_Pair]:
    recipe, spec = subject.recipe, subject.spec
    names = recipe.task_names[:MOST_TASKS]
    rows = [
        task_loss(f"tasks[{at}].loss", task.loss).row
        for at, task in enumerate(recipe.tasks[:MOST_TASKS])
    ]
    sets = split_sets(spec, recipe.model)[0]
    batches = first_rows(subject, ROWS, "gradients", progress)
    found = conflicts(
        subject.model,
        ((sample.inputs, sample.labels) for sample in batches),
        TaskLosses(build_decoder(recipe), rows),
        [_tables_of(spec, each) for each in sets],
    )
    for each, by_table in zip(sets, found, strict=True):
        for first, second in combinations(range(len(names)), 2):
            tasks = (names[first], names[second])
            yield _Pair(subject.name, short, each.name, tasks, (first, second), by_table)


def _tables_of(spec: EmbeddingSpec, of_set: EmbeddingSet) -> dict[str, list[int]]:
    """Positions of the fields of every table among those that a set covers."""
    places: dict[str, list[int]] = {}
    for place, field in enumerate(spec.fields_of(of_set)):
        places.setdefault(spec.table_of(field).name, []).append(place)
    return places


def _summary(pairs: Sequence[_Pair]) -> Iterator[str]:
    apart: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        for task in pair.idle:
            reached = apart.setdefault((pair.short, pair.of_set), [])
            if task not in reached:
                reached.append(task)
    known = [pair for pair in pairs if pair.cosine() is not None]
    for pair in sorted(known, key=lambda each: each.cosine() or 0.0)[:6]:
        cosine, share = pair.cosine(), pair.share_against()
        assert cosine is not None
        how = "pull neither together nor apart"
        if abs(cosine) >= CLEAR:
            how = "pull apart" if cosine < 0 else "pull together"
        told = "" if share is None else f", against each other on {share:.0%} of the rows with both"
        yield (
            f"{pair.short}: in set `{pair.of_set}` the losses of {pair.tasks[0]} and {pair.tasks[1]} "
            f"{how}, cosine {cosine:.2f}{told}."
        )
    for (short, of_set), tasks in apart.items():
        whose = f"loss of {tasks[0]} has"
        if len(tasks) > 1:
            whose = f"losses of {', '.join(tasks[:-1])} and {tasks[-1]} have"
        yield f"{short}: the {whose} no gradient at all in set `{of_set}`, exactly 0 on every row."


def _numbers(pairs: Sequence[_Pair]) -> Numbers:
    rows: list[tuple[Cell, ...]] = []
    for pair in pairs:
        for table in pair.by_table:
            mean = pair.by_table[table].mean_cosine(*pair.places)
            numbers = (pair.cosine(table), mean, pair.share_against(table), pair.rows(table))
            where = (pair.model, pair.of_set, table or "all", *pair.tasks)
            rows.append((*where, *numbers))
    columns = ("model", "set", "table", "task", "other", "cosine", "mean cosine of rows")
    return Numbers((*columns, "share against", "rows"), rows)


def _bars(pairs: Sequence[_Pair], values: Sequence[float | None]) -> list[dict[str, object]]:
    """A trace for every two tasks, a bar for every set."""
    versus = list(dict.fromkeys(pair.versus for pair in pairs))
    traces: list[dict[str, object]] = []
    for name in versus:
        own = [(p.label, v) for p, v in zip(pairs, values, strict=True) if p.versus == name]
        labels, numbers = zip(*own, strict=True)
        traces.append({"type": "bar", "orientation": "h", "name": name, "y": labels, "x": numbers})
        traces[-1]["texttemplate"] = "%{x:.2f}"
    return traces


def _layout(pairs: Sequence[_Pair], title: str, limits: tuple[float, float]) -> dict[str, object]:
    labels = len({pair.label for pair in pairs})
    versus = len({pair.versus for pair in pairs})
    return {
        "height": 140 + labels * (16 + 16 * versus),
        "xaxis": {"title": {"text": title}, "range": list(limits)},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "showlegend": versus > 1,
    }


def _cosines(pairs: Sequence[_Pair]) -> Plot:
    return Plot(
        title="Cosine of the tasks' gradients, by set",
        shows=(
            "Below 0: what lowers one task's loss raises the other's through these vectors. No bar: the "
            "loss of one of the two does not reach the set."
        ),
        definition=(
            "cosine of dL_A/dX and dL_B/dX of all rows side by side, X the vectors that rows looked up in "
            "the set, L the tasks' losses of rows"
        ),
        source=_SOURCE,
        traces=_bars(pairs, [pair.cosine() for pair in pairs]),
        layout=_layout(pairs, "cosine", (-1, 1)),
        numbers=_numbers(pairs),
    )


def _shares(pairs: Sequence[_Pair]) -> Plot:
    return Plot(
        title="Rows whose tasks pull apart, by set",
        shows="Half of the rows is what two unrelated directions come to.",
        definition=(
            "share of rows with a negative cosine, of those on which both tasks have a label and a "
            "gradient"
        ),
        source=_SOURCE,
        traces=_bars(pairs, [pair.share_against() for pair in pairs]),
        layout=_layout(pairs, "share of rows", (0, 1)),
        numbers=_numbers(pairs),
    )


def _tables(pairs: Sequence[_Pair]) -> Plot:
    tables = list(dict.fromkeys(name for pair in pairs for name in pair.by_table if name))
    several = len({pair.versus for pair in pairs}) > 1
    labels = [f"{pair.label}{f' · {pair.versus}' if several else ''}" for pair in pairs]
    values = [
        [pair.cosine(table) if table in pair.by_table else None for table in tables]
        for pair in pairs
    ]
    trace: dict[str, object] = {
        "type": "heatmap",
        "z": values,
        "x": tables,
        "y": labels,
        "zmin": -1,
        "zmax": 1,
    }
    trace |= {"colorscale": "RdBu", "reversescale": True}
    return Plot(
        title="Cosine of the tasks' gradients, by table",
        shows="Which ids the tasks disagree about. An empty cell: one of the two has no gradient there.",
        definition="the same cosine over the vectors of one table",
        source=_SOURCE,
        traces=[trace],
        layout={
            "height": 160 + 24 * len(labels),
            "xaxis": {"type": "category"},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        },
        numbers=_numbers(pairs),
    )
