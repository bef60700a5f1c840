"""The chapter on experts: how alike they are, and how tasks share them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from prismrec.analysis.decorrelation import (
    MOST_COLUMNS,
    ExpertMoments,
    LayerFindings,
    look_at_experts,
    summed_over_pairs,
)
from prismrec.analysis.passes import first_rows
from prismrec.analysis.report.chapter import Cell, Chapter, Numbers, Plot
from prismrec.analysis.report.labels import labels_of
from prismrec.analysis.report.panels import heat_panel, stacked
from prismrec.analysis.subject import Progress, Subject
from prismrec.config import Recipe
from prismrec.models.assembly import split_sets

ROWS = 50_000
"""Rows that experts are run over, the first ones."""
MOST_READERS, MOST_TOLD = 30, 4
"""Readers of a layer whose gates are drawn, and those that sentences are about; the table has all."""
EVEN = 0.99
"""Share of the most possible entropy from which on a gate is said to choose nothing."""

_SHARED = "shared stream"
_MOE = (
    'after "Enhancing CTR Prediction with De-correlated Expert Networks", 2025, arXiv 2505.17925, which '
    "keeps this correlation small; the mean of absolute values is our reading"
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of experts of a subject.

    Args:
        model: name of the subject.
        title: that name, and which layer where there are several.
        label: the same as plots call it.
        readers: names of those that weigh its experts.
        experts: what each reads and, in brackets, the only task that sees it.
        found: what the pass said.
        moments: those of the pass.
    """

    model: str
    title: str
    label: str
    readers: tuple[str, ...]
    experts: tuple[str, ...]
    found: LayerFindings
    moments: ExpertMoments

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """Positions of every two experts, each pair once."""
        count = len(self.experts)
        return ((p, q) for p in range(count) for q in range(p + 1, count))

    @property
    def num_pairs(self) -> int:
        """How many there are."""
        return math.comb(len(self.experts), 2)


def decorrelation_chapter(subjects: Sequence[Subject], progress: Progress) -> Chapter:
    """Correlation, alignment and covariance of experts, and the shares of gates, model by model.

    Args:
        subjects: the models.
        progress: told of the pass over each.
    """
    layers: list[_Layer] = []
    missing: list[str] = []
    labels = labels_of(subjects)
    for subject in subjects:
        found = _layers(subject, labels[subject.name].short, progress)
        layers += found
        missing += _missing(subject, found)
    plots = []
    if layers:
        plots = [_correlations(layers), _sums(layers), _alignments(layers), _covariances(layers)]
    gated = [layer for layer in layers if layer.found.gates is not None]
    if gated:
        plots.append(_gates(gated))
    summary = [sentence for layer in layers for sentence in _summary(layer)]
    return Chapter("experts", "Experts", summary, plots, missing)


def reader_names(recipe: Recipe) -> tuple[str, ...]:
    """Who weighs experts, in the order of the gates: each logit of a task, and the shared stream."""
    levels = [f"{task.name} level" for task in recipe.tasks if task.has_level]
    return (*recipe.task_names, *levels, _SHARED)


def _layers(subject: Subject, short: str, progress: Progress) -> list[_Layer]:
    readers = reader_names(subject.recipe)
    sets = [each.name for each in split_sets(subject.spec, subject.recipe.model)[0]]
    rows = first_rows(subject, ROWS, "experts", progress)
    found = look_at_experts(subject.model, (sample.inputs for sample in rows), sets, readers)
    layers = []
    for which, each in zip(_places(list(found)), found.values(), strict=True):
        names = readers
        if each.gates is not None:
            count = len(each.gates.sums)
            names = ("all tasks",) if count == 1 < len(readers) - 1 else readers[:count]
        if each.moments is not None:
            titles = (f"{subject.name}{which}", f"{short}{which}")
            experts = _owned(each, names)
            layers.append(_Layer(subject.name, *titles, names, experts, each, each.moments))
    return layers


def _places(modules: Sequence[str]) -> list[str]:
    """Which branch and layer the modules of one model are, as far as there are several.

    >>> _places(["branches.1.extraction.layers.0", "branches.1.extraction.layers.1"])
    [', layer 1', ', layer 2']
    >>> _places(["branches.0", "branches.1"]), _places(["branches.0"])
    ([', branch 1', ', branch 2'], [''])
    """
    parts = [name.partition(".extraction.layers.")[::2] for name in modules]
    branches = len({branch for branch, _ in parts})
    places = []
    for branch, depth in parts:
        number = branch.rpartition(".")[2]
        of_branch = sum(other == branch for other, _ in parts)
        place = f", branch {int(number) + 1}" if branches > 1 and number.isdigit() else ""
        places.append(f"{place}, layer {int(depth) + 1}" if of_branch > 1 else place)
    return places


def _owned(found: LayerFindings, readers: Sequence[str]) -> tuple[str, ...]:
    """Names of experts, with the task of those whose gate is above 0 for one task alone."""
    tasks = [at for at, name in enumerate(readers) if name != _SHARED]
    if found.gates is None or len(tasks) < 2:
        return found.experts
    names = []
    for name, sums in zip(found.experts, found.gates.sums[tasks].t(), strict=True):
        seen = [readers[at] for at, total in zip(tasks, sums, strict=True) if total > 0]
        is_told = len(seen) != 1 or seen[0] in name.split()
        names.append(name if is_told else f"{name} ({seen[0]})")
    return tuple(names)


def _missing(subject: Subject, layers: Sequence[_Layer]) -> Iterator[str]:
    if not layers:
        yield (
            f"{subject.name} has no layer of two experts or more, so there is nothing to hold against "
            "each other; train a model that has, such as 'mmoe', 'ple', 'stem' or 'ame'"
        )
    for layer in layers:
        if any(count < width for count, width in layer.found.columns):
            count, width = layer.found.columns[0]
            yield (
                f"{layer.title}: its experts are wider than the {MOST_COLUMNS} columns in all that are "
                f"kept, so each was looked at by evenly spaced ones, the first by {count} of {width}"
            )


def _summary(layer: _Layer) -> Iterator[str]:
    names, R = layer.experts, layer.moments.correlation()
    order = sorted(layer.pairs, key=lambda pair: float(R[pair]))
    mean = summed_over_pairs(R) / layer.num_pairs
    p, q = order[-1]
    least = ""
    if len(order) > 1:
        a, b = order[0]
        least = f", `{names[a]}` and `{names[b]}` least, {float(R[a, b]):.2f}"
    yield (
        f"{layer.label}: of {len(names)} experts `{names[p]}` and `{names[q]}` say most alike, mean "
        f"|correlation| {float(R[p, q]):.2f}{least}; over all pairs {mean:.2f}."
    )
    flat = layer.moments.flat_columns()
    worst = max(range(len(flat)), key=lambda at: flat[at] / layer.moments.widths[at])
    if flat[worst]:
        yield (
            f"{layer.label}: {flat[worst]} of {layer.moments.widths[worst]} columns of expert "
            f"`{names[worst]}` never vary; {sum(flat)} of {sum(layer.moments.widths)} of all experts."
        )
    yield from _gate_sentences(layer)


def _gate_sentences(layer: _Layer) -> Iterator[str]:
    """What the readers that choose most take."""
    gates, names = layer.found.gates, layer.experts
    if gates is None:
        return
    told = sorted(
        range(len(layer.readers)), key=lambda at: (gates.entropy[at].nan_to_num().item(), at)
    )
    for at in told[:MOST_TOLD]:
        shares, entropy = gates.shares[at], float(gates.entropy[at])
        seen, most = int((shares > 0).sum()), int(shares.argmax())
        start = f"{layer.label}: {layer.readers[at]}"
        if math.isnan(entropy):
            yield f"{start} gives most to expert `{names[most]}`, {shares[most]:.2f}."
        elif seen > 1 and entropy >= EVEN * math.log(seen):
            yield f"{start} takes the {seen} experts that it sees about alike."
        else:
            yield (
                f"{start} gives most to expert `{names[most]}`, {shares[most]:.2f}; entropy {entropy:.2f} "
                f"of at most {math.log(seen):.2f} nats."
            )


def _matrix_numbers(layers: Sequence[_Layer], name: str, matrices: Sequence[Tensor]) -> Numbers:
    rows: list[tuple[Cell, ...]] = [
        (layer.title, one, other, float(matrix[p, q]), layer.moments.rows)
        for layer, matrix in zip(layers, matrices, strict=True)
        for p, one in enumerate(layer.experts)
        for q, other in enumerate(layer.experts)
    ]
    return Numbers(("model", "expert", "other", name, "rows"), rows)


def _maps(
    layers: Sequence[_Layer], matrices: Sequence[Tensor]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    return stacked(
        [
            heat_panel(layer.label, matrix.tolist(), layer.experts, layer.experts)
            for layer, matrix in zip(layers, matrices, strict=True)
        ]
    )


def _correlations(layers: Sequence[_Layer]) -> Plot:
    matrices = [layer.moments.correlation() for layer in layers]
    traces, layout = _maps(layers, matrices)
    return Plot(
        title="Correlation of experts",
        shows=(
            "Experts named by the set or stream that they read. Light off the diagonal: two experts say "
            "much the same, and one of them is wasted. Independent columns come to about "
            f"{math.sqrt(2 / (math.pi * layers[0].moments.rows)):.3f} over {layers[0].moments.rows} "
            "rows, by chance alone."
        ),
        definition=(
            "R_pq, the mean over columns i of expert p and j of expert q of |corr(O_pi, O_qj)|; a column "
            "that does not vary has correlation 0"
        ),
        source=_MOE,
        traces=traces,
        layout=layout,
        numbers=_matrix_numbers(layers, "correlation", matrices),
    )


def _sums(layers: Sequence[_Layer]) -> Plot:
    sums = [summed_over_pairs(layer.moments.correlation()) for layer in layers]
    norms = [summed_over_pairs(layer.moments.covariance_norms()) for layer in layers]
    rows: list[tuple[Cell, ...]] = [
        (layer.title, len(layer.experts), total, total / layer.num_pairs, norm)
        for layer, total, norm in zip(layers, sums, norms, strict=True)
    ]
    return Plot(
        title="Correlation of experts, all pairs together",
        shows=(
            "Less is more diverse. A sum grows with the number of pairs; compare models of as many "
            "experts, or the mean in the table."
        ),
        definition="sum of R_pq over pairs p < q of experts",
        source=_MOE,
        traces=[
            {"type": "bar", "orientation": "h", "y": [each.label for each in layers], "x": sums}
        ],
        layout={
            "height": 120 + 30 * len(rows),
            "xaxis": {"title": {"text": "sum over pairs"}},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        },
        numbers=Numbers(
            ("model", "experts", "sum of correlation", "mean of pairs", "sum of covariance norms"),
            rows,
        ),
    )


def _alignments(layers: Sequence[_Layer]) -> Plot:
    matrices = [layer.moments.alignment() for layer in layers]
    traces, layout = _maps(layers, matrices)
    return Plot(
        title="Alignment of experts (CKA)",
        shows=(
            "1 where one expert's output is a turn and a scale of the other's, which correlation of "
            "columns does not see; 0 where they have nothing in common."
        ),
        definition="|O_p^T O_q|^2 / (|O_p^T O_p| |O_q^T O_q|) of centred outputs, Frobenius norms",
        source='Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019',
        traces=traces,
        layout=layout,
        numbers=_matrix_numbers(layers, "alignment", matrices),
    )


def _covariances(layers: Sequence[_Layer]) -> Plot:
    matrices = [layer.moments.covariance_norms() for layer in layers]
    traces, layout = _maps(layers, matrices)
    for trace in traces:
        del trace["zmin"], trace["zmax"]
    return Plot(
        title="Covariance of experts",
        shows=(
            "What the covariance loss of Crocodile makes small. Unlike a correlation it grows with the "
            "outputs themselves: compare within a model, not between models."
        ),
        definition="Frobenius norm of the covariance (H_p, H_q) of every pair of experts",
        source=(
            'Lin et al., "Crocodile: Cross Experts Covariance for Disentangled Learning in Multi-Domain '
            'Recommendation", 2024'
        ),
        traces=traces,
        layout=layout,
        numbers=_matrix_numbers(layers, "covariance norm", matrices),
    )


def _gates(layers: Sequence[_Layer]) -> Plot:
    panels, rows = [], []
    for layer in layers:
        gates = layer.found.gates
        assert gates is not None
        shares = gates.shares.tolist()
        title, drawn = layer.label, layer.readers[:MOST_READERS]
        if len(drawn) < len(layer.readers):
            title += f", the first {len(drawn)} of {len(layer.readers)}"
        panels.append(heat_panel(title, shares[: len(drawn)], layer.experts, drawn))
        for reader, of_reader, entropy in zip(layer.readers, shares, gates.entropy, strict=True):
            nats = None if math.isnan(float(entropy)) else float(entropy)
            rows += [
                (layer.title, reader, expert, share, nats, gates.rows)
                for expert, share in zip(layer.experts, of_reader, strict=True)
            ]
    traces, layout = stacked(panels)
    return Plot(
        title="How tasks share experts out",
        shows=(
            "A row for each task. Rows alike: the tasks take the same mix, and gates do little. A column "
            "near 0 throughout: an expert that nobody listens to."
        ),
        definition=(
            "mean over rows of the gate, and of its elements where each has one; entropy: the mean of "
            "-sum g ln g, empty where gates are no distribution"
        ),
        source=(
            'Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate '
            'Mixture-of-Experts", KDD 2018, section 6'
        ),
        traces=traces,
        layout=layout,
        numbers=Numbers(("model", "reader", "expert", "share", "entropy", "rows"), rows),
    )
