"""What features, and pairs of features, say about each label, and whether learned pairs follow it.

Features are cut into categories: what a field looks up in a row, as a whole, is one; frequent ones
stay themselves and the rest share a few. So the information is that of the categories, at most that
of the feature. Numbers are cut by their quantiles.

Notation: R rows, N features, T tasks, K width of a set.

Source: Pan et al., "Field-weighted Factorization Machines", WWW 2018, section 4, for the information
of pairs beside their learned strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.analysis.discriminability import ROWS_PER_CLASS, fit_quantiles
from prismrec.analysis.information import (
    Information,
    count_pairs,
    information,
    mutual_information,
)
from prismrec.analysis.layers import layer_rows
from prismrec.analysis.pair_blocks import PairBlocks
from prismrec.analysis.pearson import pearson
from prismrec.analysis.subject import FieldRows, Progress, Subject

MOST_ROWS = 1 << 18
"""Rows of the sample whose features are read; a number is kept for each row and feature."""
MOST_CATEGORIES = 1024
"""Categories of a feature by itself."""
MOST_PAIR_CATEGORIES = 64
"""Categories of a feature in a pair."""
SHARED = 4
"""One in so many categories is shared by the features' values that are not frequent."""
STRENGTH_ROWS = 4096
"""Rows that the strength of pairs is taken over."""
_MIX = (0x5851F42D4C957F2D, 0x14057B7EF767814F)


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """The features of a sample, a number for each row.

    Args:
        names: of the N features, fields first, then numeric columns.
        keys: (R,) int64 of each field, equal for rows that look up the same.
        values: (R,) float32 of each numeric column.
        labels: (R, T), NaN where a task has no valid label.
    """

    names: tuple[str, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    labels: Tensor

    def codes(self, num_categories: int) -> list[Tensor]:
        """(R,) int64 categories of each feature, fewer than `num_categories`."""
        numbers = [fit_quantiles(each, num_categories)(each) for each in self.values]
        return [categories(each, num_categories) for each in self.keys] + numbers


@dataclass(frozen=True, slots=True)
class FeatureInformation:
    """What the features of a model's sample say about its labels.

    Args:
        names: of the N features, fields first, then numeric columns.
        alone: of each feature, about each task.
        pairs: (T, N, N) float64 nats that two features say together; see `pair_information`.
        entropies: (T,) float64 entropies of the labels.
        num_categories: of a feature alone.
        num_pair_categories: of a feature in a pair.
        rows: R.
    """

    names: tuple[str, ...]
    alone: tuple[tuple[Information, ...], ...]
    pairs: Tensor
    entropies: Tensor
    num_categories: int
    num_pair_categories: int
    rows: int


def feature_information(subject: Subject, progress: Progress) -> FeatureInformation:
    """What features, and pairs of them, say about every task's label.

    Memory: `MOST_ROWS` numbers of each feature; rows beyond are not read. A category has
    `ROWS_PER_CLASS` rows on average at least, as has a pair of categories.
    """
    columns = feature_columns(subject, progress)
    rows = len(columns.labels)
    enough = max(rows // ROWS_PER_CLASS, 4)
    most, of_pair = min(enough, MOST_CATEGORIES), min(math.isqrt(enough), MOST_PAIR_CATEGORIES)
    alone = []
    for codes in columns.codes(most):
        counts = [count_pairs(codes, *_binary(label, most)) for label in columns.labels.t()]
        alone.append(tuple(information(each) for each in counts))
    pairs = pair_information(columns.codes(of_pair), columns.labels, of_pair, progress)
    entropies = torch.tensor([each.entropy for each in alone[0]], dtype=torch.float64)
    return FeatureInformation(columns.names, tuple(alone), pairs, entropies, most, of_pair, rows)


def _binary(label: Tensor, num_codes: int) -> tuple[Tensor, int, int, Tensor]:
    """What `count_pairs` takes after the codes, for labels of 0, 1 and NaN."""
    return (label > 0.5).long(), num_codes, 2, ~label.isnan()


def feature_columns(subject: Subject, progress: Progress) -> FeatureColumns:
    """The features of the first `MOST_ROWS` rows of the sample."""
    names = subject.spec.fields
    keys: list[list[Tensor]] = [[] for _ in names]
    dense, labels, done = [], [], 0
    for sample in subject.samples():
        room = MOST_ROWS - done
        if room <= 0:
            break
        for kept, name in zip(keys, names, strict=True):
            kept.append(bag_keys(sample.fields[name])[:room])
        dense.append(sample.inputs.dense[:room].float())
        labels.append(sample.labels[:room])
        done += len(labels[-1])
        progress(f"{subject.name}: features", done, min(subject.num_rows, MOST_ROWS))
    numeric = subject.recipe.features.numeric
    return FeatureColumns(
        (*names, *numeric),
        tuple(torch.cat(each) for each in keys),
        torch.cat(dense).unbind(1) if numeric else (),
        torch.cat(labels),
    )


def bag_keys(field: FieldRows) -> Tensor:
    """(B,) int64, equal for rows of the batch that look up the same rows, in whatever order; 0 for none."""
    mixed = (field.rows + 1) * _MIX[0]
    mixed = (mixed ^ (mixed >> 29)) * _MIX[1] + 1
    owners = torch.repeat_interleave(torch.arange(len(field.lengths)), field.lengths)
    return torch.zeros(len(field.lengths), dtype=torch.int64).index_add_(0, owners, mixed)


def categories(keys: Tensor, num_categories: int) -> Tensor:
    """(R,) int64 categories of keys: one for each if they are few enough, else one for each frequent key.

    The others share one category in `SHARED`, by a hash.

    Args:
        keys: (R,) int64.
        num_categories: at least 2.
    """
    unique, place, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    if len(unique) <= num_categories:
        return place
    shared = max(1, num_categories // SHARED)
    own = num_categories - shared
    order = counts.argsort(descending=True, stable=True)
    codes = own + unique.remainder(shared)
    codes[order[:own]] = torch.arange(own)
    return codes[place]


def pair_information(
    codes: Sequence[Tensor], labels: Tensor, num_categories: int, progress: Progress
) -> Tensor:
    """(T, N, N) float64 nats that two features say together about each label, corrected.

    Symmetric, with NaN on the diagonal, and where the rarer label comes less than once for each pair of
    categories that occurs: there the estimate is noise.

    Args:
        codes: (R,) categories of each of the N features.
        labels: (R, T), NaN where a task has no valid label.
        num_categories: more than any category.
        progress: told how many features are done.
    """
    tasks, features = labels.shape[1], len(codes)
    found = torch.full((tasks, features, features), math.nan, dtype=torch.float64)
    cells = num_categories * num_categories
    of_tasks = [_binary(label, cells) for label in labels.t()]
    # of a label that does not vary this is 0, so that nothing is known about it
    rarest = torch.minimum((labels > 0.5).sum(0), (labels <= 0.5).sum(0))
    for i in range(features):
        for j in range(i + 1, features):
            joint = codes[i] * num_categories + codes[j]
            counts = torch.stack([count_pairs(joint, *each) for each in of_tasks])
            nats, correction = mutual_information(counts)
            occurring = (counts.sum(-1) > 0).sum(-1)
            said = (nats - correction).masked_fill(occurring > rarest, math.nan)
            found[:, i, j] = found[:, j, i] = said
        progress("information of pairs of features", i + 1, features)
    return found


def pair_strengths(subject: Subject, blocks: Sequence[PairBlocks]) -> list[Tensor]:
    """(N, N) float64 of each interaction: how much a pair adds, mean of |its product| over rows.

    Half of `(e_i M_{i->j}) . e_j + (e_j M_{j->i}) . e_i`, whose two terms are equal where the
    interaction is symmetric. NaN where fields do not meet; over the first `STRENGTH_ROWS` rows.
    """
    names = [f"{each.set_name}: fields" for each in blocks]
    totals = [torch.zeros(len(each.fields), len(each.fields)).double() for each in blocks]
    done = 0
    for rows in layer_rows(subject, sorted(set(names))):
        room = STRENGTH_ROWS - done
        if room <= 0:
            break
        for total, each, name in zip(totals, blocks, names, strict=True):
            vectors = rows.vectors[name][:room].unflatten(1, (len(each.fields), -1))
            products = _products(vectors, each.matrices.float())
            total += ((products + products.mT) / 2).abs().sum(0, dtype=torch.float64)
        done += min(room, len(rows.labels))
    apart = [~(each.meets | each.meets.t()) for each in blocks]
    return [
        (total / max(done, 1)).masked_fill(none, math.nan)
        for total, none in zip(totals, apart, strict=True)
    ]


def _products(vectors: Tensor, matrices: Tensor) -> Tensor:
    """(B, N, N) of `(e_i M_{i->j}) . e_j`, a partner at a time: all of them would not fit into memory."""
    return torch.stack(
        [
            (torch.einsum("bik,ikl->bil", vectors, matrices[:, j]) * vectors[:, j : j + 1]).sum(-1)
            for j in range(vectors.shape[1])
        ],
        2,
    )


def pair_correlation(learned: Tensor, informed: Tensor) -> float | None:
    """Pearson correlation of two (N, N) matrices over pairs of different fields that both know.

    None for fewer than three pairs, or where one of them is the same for all pairs.
    """
    both = (learned + learned.mT) / 2
    upper = torch.ones_like(both, dtype=torch.bool).triu(1)
    known = upper & both.isfinite() & informed.isfinite()
    found = pearson(both[known].double().numpy(), informed[known].double().numpy())
    return found if math.isfinite(found) else None
