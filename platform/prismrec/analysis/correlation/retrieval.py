"""Whether the behaviours that a model weighs most are those that say most of the label.

Source: "Long-Sequence Recommendation Models Need Decoupled Embeddings" (ICLR 2025), retrieval analysis, whose
released code divides every DCG@k by the ideal DCG of all ranks.

Notation: B rows, row b with n_b behaviours, T behaviours of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from prismrec.analysis.correlation.information import Counts
from prismrec.analysis.correlation.learned import only, place_of, readers_of_sequence
from prismrec.analysis.correlation.modules import strength
from prismrec.analysis.correlation.truth import Question, events_of
from prismrec.analysis.subject import Progress, Subject
from prismrec.train.metrics.arrays import Floats, Ints

Ideal = Literal["at_k", "full"]
DOING = "behaviours found by {}"
"""What progress calls the pass over a model's rows."""


def retrieval_ndcg(
    relevance: Floats, scores: Floats, offsets: Ints, k: int, ideal: Ideal = "at_k"
) -> Floats:
    """(B,) DCG of the k behaviours with the largest scores, over the ideal one; NaN without relevance.

    DCG@k = sum over ranks r = 1..k of relevance / log2(r + 1). Of equal scores the later behaviour, which
    is the newer one, comes first.

    Args:
        relevance: (T,) not negative.
        scores: (T,) what they are ranked by.
        offsets: (B + 1,) row b has behaviours offsets[b] to offsets[b + 1] - 1.
        k: behaviours that are found.
        ideal: "at_k" divides by the best that k behaviours can have; "full" by the best of all ranks, as
            the released code does, so that the number grows with k.

    Raises:
        ValueError: k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k is at least 1, got {k}")
    found = _gains(relevance, scores, offsets, k)
    best = _gains(relevance, relevance, offsets, k if ideal == "at_k" else len(relevance))
    ratio: Floats = np.where(best > 0, found / np.where(best > 0, best, 1.0), np.nan)
    return ratio


def _gains(relevance: Floats, scores: Floats, offsets: Ints, k: int) -> Floats:
    """(B,) DCG@k."""
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-np.arange(len(scores)), -scores, row))
    rank = np.arange(len(scores)) - offsets[row]  # of what `order` puts there
    gains = np.where(rank < k, relevance[order] / np.log2(rank + 2), 0.0)
    sums: Floats = np.bincount(row, gains, len(lengths)).astype(np.float64)
    return sums


def model_ndcg(
    subject: Subject,
    question: Question,
    counts: Counts,
    ks: Sequence[int],
    progress: Progress,
    ideal: Ideal = "at_k",
) -> Floats | None:
    """(len(ks),) mean NDCG@k of a model's attention over its rows.

    The relevance of a behaviour is the mutual information of its cell. Behaviours and targets of other
    categories, and older ones than positions were counted for, are left out, as are rows in which nothing
    says anything. The logits of several sets are averaged.

    Args:
        subject: the model; its samples must have their columns.
        question: which behaviours and targets.
        counts: of the data.
        ks: behaviours that are found.
        progress: told the rows done.
        ideal: see `retrieval_ndcg`.

    Returns:
        None where the model does not read these behaviours, or has no sequence module for them; NaN where no
        row is left.

    Raises:
        UserError: its module is of a kind that is not known.
    """
    truth = counts.information().ravel()
    sums, rows = np.zeros(len(ks)), 0
    found = _ranked(subject, question, counts.categories, progress)
    if found is None:
        return None
    for cells, scores, offsets in found:
        each = [retrieval_ndcg(truth[cells], scores, offsets, k, ideal) for k in ks]
        sums += np.nansum(each, axis=1)
        rows += int((~np.isnan(each[0])).sum())
    return sums / rows if rows else np.full(len(ks), np.nan)


def _ranked(
    subject: Subject, question: Question, categories: Ints, progress: Progress
) -> Iterator[tuple[Ints, Floats, Ints]] | None:
    """By batch, the cells of the behaviours that count, their mean logits, and where rows begin."""
    place = place_of(subject, question)
    readers = [] if place is None else readers_of_sequence(subject, place.sequence)
    if place is None or not readers:
        return None

    def batches() -> Iterator[tuple[Ints, Floats, Ints]]:
        done = 0
        for sample in subject.samples():
            events = events_of(place.question, sample.columns, categories)
            given = only(sample.inputs.sequences[place.sequence], events)
            logits = torch.cat([strength(each, given).logits for each in readers]).mean(0)
            yield events.cell, logits.numpy(), given.offsets.numpy()
            done += len(events.of_target)
            progress(DOING.format(subject.name), done, subject.num_rows)

    return batches()
