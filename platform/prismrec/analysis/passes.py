"""Passes over the rows that a model is looked at on."""

from __future__ import annotations

from collections.abc import Iterator

from prismrec.analysis.subject import Progress, Sample, Subject


def first_rows(subject: Subject, most: int, what: str, progress: Progress) -> Iterator[Sample]:
    """The first rows of a subject, whole batches until there are enough.

    Args:
        subject: what is looked at.
        most: rows after which no further batch is begun.
        what: told to `progress` with the rows so far and the rows to come.
        progress: told after every batch.
    """
    done, total = 0, min(most, subject.num_rows)
    if done >= total:
        return
    for sample in subject.samples():
        yield sample
        done += len(sample.labels)
        progress(f"{what} of {subject.name}", min(done, total), total)
        if done >= total:
            return
