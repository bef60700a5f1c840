"""The chapter on interest entanglement: tasks that mean different things by near, in the same vectors."""

from __future__ import annotations

from collections.abc import Sequence

from prismrec.analysis.entanglement import Metric
from prismrec.analysis.report.alone import alone_missing, models_alone
from prismrec.analysis.report.chapter import Chapter
from prismrec.analysis.report.conflicts import conflict_findings
from prismrec.analysis.report.contradictions import Question, contradiction_findings
from prismrec.analysis.report.findings import Findings
from prismrec.analysis.report.gains import gain_findings
from prismrec.analysis.report.labels import labels_of
from prismrec.analysis.subject import Progress, Subject


def entanglement_chapter(
    subjects: Sequence[Subject],
    fields: tuple[str, str],
    progress: Progress,
    metric: Metric = "euclidean",
) -> Chapter:
    """Contradictory pairs, diversity of sets, conflicts of gradients, and gains by users' leaning.

    The models of one task that others are held against are the first subject with a single task and the
    first one with another; without them there are gradients and the diversity of sets.

    Args:
        subjects: the models.
        fields: the two fields whose vectors are held against each other, that of the user first.
        progress: told of every pass.
        metric: of the distances.
    """
    alone, labels = models_alone(subjects), labels_of(subjects)
    found = Findings(missing=tuple(alone_missing(subjects, alone)))
    question = Question(fields, metric, alone, labels)
    found += contradiction_findings(subjects, question, progress)
    if alone is not None and fields[0] in alone.first.spec.fields:
        found += gain_findings(subjects, fields[0], alone, labels, progress)
    found += conflict_findings(subjects, labels, progress)
    return Chapter("entanglement", "Entanglement", found.summary, found.plots, found.missing)
