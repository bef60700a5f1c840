"""Of the chapter on entanglement: what models of several tasks gain on users that lean to one of two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prismrec.analysis.bucketed_gain import NUM_BUCKETS, Gain, Leaning, bucketed_gain, leaning
from prismrec.analysis.passes import first_rows
from prismrec.analysis.report.alone import Alone, one_id
from prismrec.analysis.report.chapter import Cell, Numbers, Plot
from prismrec.analysis.report.findings import Findings
from prismrec.analysis.report.labels import Label
from prismrec.analysis.subject import Progress, Subject
from prismrec.models.objectives import build_decoder
from prismrec.train.metrics.arrays import Floats, Ints

SMALL = 20
"""Positives, and negatives, below which a tenth's gain is in the table but in no sentence."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """Logits and labels (n,) of the rows of a subject, by task."""

    logits: dict[str, Floats]
    labels: dict[str, Floats]


@dataclass(frozen=True, slots=True)
class _Line:
    """The gains of one model on one task.

    Args:
        model: name of the subject.
        short: the same in sentences and legends.
        task: name of the task.
        gains: of every tenth that has rows.
    """

    model: str
    short: str
    task: str
    gains: Sequence[Gain]

    @property
    def firm(self) -> list[Gain]:
        """Those with enough rows of both labels to speak of."""
        return [g for g in self.gains if min(g.positives, g.rows - g.positives) >= SMALL]


def gain_findings(
    subjects: Sequence[Subject],
    user: str,
    alone: Alone,
    labels: Mapping[str, Label],
    progress: Progress,
) -> Findings:
    """AUC of models of both tasks minus that of the model of a task alone, by tenths of users.

    Args:
        subjects: the models; those with both tasks are compared.
        user: field that tells users apart.
        alone: the models of one task.
        labels: how plots call the models, by name.
        progress: told of the passes.
    """
    both = [each for each in subjects if set(alone.tasks) <= set(each.recipe.task_names)]
    if not both:
        return Findings(
            missing=[
                f"no model has both tasks {' and '.join(alone.tasks)}, so there is no gain over the models "
                "of one task; pass one that has"
            ]
        )
    missing = [
        f"{each.name} was given {each.num_rows} rows and {alone.first.name} {alone.first.num_rows}; gains "
        "are compared on the same rows only, so give their recipes the same split, or look at all rows"
        for each in (*both, alone.second)
        if each.num_rows != alone.first.num_rows
    ]
    users = None if missing else _users(alone.first, user, progress)
    if missing or users is None:
        return Findings(
            missing=missing or [f"a row of {user} has no id or several; name the field of the user"]
        )
    scored = [_scored(each, progress) for each in (alone.first, alone.second)]
    truth = {t: one.labels[t] for t, one in zip(alone.tasks, scored, strict=True)}
    leans = leaning(users, truth[alone.tasks[0]], truth[alone.tasks[1]])
    lines = []
    for subject in both:
        of_model = _scored(subject, progress)
        for task, single in zip(alone.tasks, scored, strict=True):
            found = bucketed_gain(
                leans.buckets, truth[task], of_model.logits[task], single.logits[task]
            )
            lines.append(_Line(subject.name, labels[subject.name].short, task, found))
    return Findings(tuple(_summary(lines, leans, alone)), (_plot(lines, leans, alone),))


def _users(subject: Subject, field: str, progress: Progress) -> Ints | None:
    parts = []
    for sample in first_rows(subject, subject.num_rows, "users", progress):
        found = one_id(sample.fields[field])
        if found is None:
            return None
        parts.append(found)
    return np.concatenate(parts)


def _scored(subject: Subject, progress: Progress) -> _Scored:
    decoder, parts = build_decoder(subject.recipe), []
    for sample in first_rows(subject, subject.num_rows, "scores", progress):
        with torch.no_grad():
            columns, _ = subject.model(sample.inputs)
            logits = decoder.served(decoder(columns.float())[0])
        parts.append((logits.double().numpy(), sample.labels.double().numpy()))
    logits_of, labels_of = (np.concatenate(each) for each in zip(*parts, strict=True))
    names = subject.recipe.task_names
    return _Scored(
        {name: logits_of[:, at] for at, name in enumerate(names)},
        {name: labels_of[:, at] for at, name in enumerate(names)},
    )


def _summary(lines: Sequence[_Line], leans: Leaning, alone: Alone) -> Iterator[str]:
    for line in lines:
        if not line.firm:
            continue
        best = max(line.firm, key=lambda each: each.gain)
        worst = min(line.firm, key=lambda each: each.gain)
        told = (
            f"{best.gain:+.3f} on users with {leans.ratios[best.bucket]:.0%} of their positives in "
        )
        told += alone.tasks[0]
        if worst is not best:
            told = (
                f"at best {told}, at worst {worst.gain:+.3f}, with {leans.ratios[worst.bucket]:.0%}"
            )
        yield f"{line.short} on {line.task}, beside the model of {line.task} alone: AUC {told}."


def _plot(lines: Sequence[_Line], leans: Leaning, alone: Alone) -> Plot:
    first, second = alone.tasks
    rows: list[tuple[Cell, ...]] = []
    for line in lines:
        for each in line.gains:
            at = each.bucket
            where = (line.model, line.task, at + 1, float(leans.ratios[at]), int(leans.users[at]))
            aucs = [None if math.isnan(v) else v for v in (each.model, each.alone, each.gain)]
            rows.append((*where, each.rows, each.positives, *aucs))
    columns = ("model", "task", "tenth", f"share of {first}", "users", "rows", "positives")
    left = int((leans.buckets < 0).sum())
    return Plot(
        title="Gain over models of one task, by what users lean to",
        shows=(
            f"Left: users whose positives are all of {second}, right: all of {first}. A model of several "
            "tasks that gains on one side and loses on the other has learnt the one for the other's price."
        ),
        definition=(
            "AUC of the model minus that of the model of the task alone, on the rows of users in each of "
            f"{NUM_BUCKETS} tenths by #pos({first}) / (#pos({first}) + #pos({second})); users of one ratio "
            f"stay together, and {left} rows of users without a positive are left out"
        ),
        source=(
            'Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, '
            "comparable samples"
        ),
        traces=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{line.short} · {line.task}",
                "x": [float(leans.ratios[each.bucket]) for each in line.gains],
                "y": [None if math.isnan(each.gain) else each.gain for each in line.gains],
            }
            for line in lines
        ],
        layout={
            "height": 380,
            "xaxis": {
                "title": {"text": f"share of {first} among positives"},
                "range": [-0.05, 1.05],
            },
            "yaxis": {"title": {"text": "gain in AUC"}, "zeroline": True},
        },
        numbers=Numbers((*columns, "AUC", "AUC alone", "gain"), rows),
    )
