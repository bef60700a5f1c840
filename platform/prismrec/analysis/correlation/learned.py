"""The correlation that a model has learned, by target category, category of a behaviour and position.

A map holds the logit z and the length of the summed vector r of each cell. Made from data it is the mean
over the behaviours of a cell, or over what stands for them; made from tables (`tables.py`) it is what the
vectors of categories and positions say by themselves.

Source: "Temporal Interest Network for User Response Prediction" (WWW 2024), figure of learned
correlation, and its released code for the published normalisation.

Notation: S sets, K categories, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prismrec.analysis.correlation.modules import Reader, readers_of, strength
from prismrec.analysis.correlation.truth import Events, Question, events_of, source_of
from prismrec.analysis.subject import Progress, Subject
from prismrec.models.assembly import split_sets
from prismrec.models.inputs import SequenceInputs
from prismrec.train.metrics.arrays import Floats, Ints

Of = Literal["categories", "behaviours"]
DOING = "correlations learned by {}"
"""What progress calls the pass over a model's rows."""


@dataclass(frozen=True, slots=True)
class LearnedMap:
    """What a model's sequence modules make of behaviours.

    Args:
        categories: (K,) ids.
        sets: names of the S sets whose modules were looked at.
        logits: (S, K, K, P) mean z by target category, category of the behaviour and position; NaN
            where no behaviour was seen.
        norms: (S, K, K, P) mean length of r.
        support: (K, K, P) behaviours seen; None where none had to be.
        is_exponential: whether a behaviour counts by exp(z), else by z.
        is_standardised: whether z is standardised for the published map.
    """

    categories: Ints
    sets: tuple[str, ...]
    logits: Floats
    norms: Floats
    support: Ints | None
    is_exponential: bool = True
    is_standardised: bool = True

    def published(self, of_set: str | None = None) -> Floats:
        """(K, K, P) as the source draws it, but for the last step, `min_max`, which no score sees.

        z is standardised over the map of a target category, made to sum to 1 over it by a softmax, and
        multiplied by ||r||. So it is no affine function of `raw`.

        Args:
            of_set: name of a set; the mean z and ||r|| of all sets if not given.
        """
        logits, norms = self._of(of_set)
        maps = [normalised(z, r, self.is_standardised) for z, r in zip(logits, norms, strict=True)]
        return np.stack(maps)

    def raw(self, of_set: str | None = None) -> Floats:
        """(K, K, P) exp(z) ||r||, or z ||r|| where scores are summed as they are; see `published`."""
        logits, norms = self._of(of_set)
        products: Floats = (np.exp(logits) if self.is_exponential else logits) * norms
        return products

    def _of(self, of_set: str | None) -> tuple[Floats, Floats]:
        if of_set is None:
            return self.logits.mean(0), self.norms.mean(0)
        at = self.sets.index(of_set)
        return self.logits[at], self.norms[at]


def normalised(logits: Floats, norms: Floats, is_standardised: bool = True) -> Floats:
    """The published normalisation of one map: softmax over all cells of the standardised z, times ||r||.

    Args:
        logits: z, NaN where unknown.
        norms: ||r||, of the same shape.
        is_standardised: False leaves z as it is.
    """
    z = logits
    if is_standardised:
        spread = np.nanstd(z)
        # Equal up to rounding is equal: their differences would be blown up otherwise.
        is_flat = spread <= 1e-12 * np.nanmax(np.abs(z))
        z = np.zeros_like(z) * z if is_flat else (z - np.nanmean(z)) / spread
    weights = np.exp(z - np.nanmax(z))
    shares: Floats = weights / np.nansum(weights) * norms
    return shares


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question's behaviours are in a model.

    Args:
        question: the same question with the model's own limits of a history.
        sequence: index of the model's sequence.
        target: feature that the behaviours are matched with.
    """

    question: Question
    sequence: int
    target: str


def place_of(subject: Subject, question: Question) -> Place | None:
    """Where a model reads the behaviours of a question; None where it does not.

    Args:
        subject: the model.
        question: columns of behaviours and targets.
    """
    recipe = subject.recipe
    for index, sequence in enumerate(recipe.features.sequences):
        for each in sequence.behaviours:
            is_target = source_of(recipe, each.target) == question.target
            if each.column == question.column and is_target:
                own = Question(
                    sequence=sequence.model_copy(update={"behaviours": (each,)}),
                    target=question.target,
                    label=question.label,
                    time=recipe.features.time,
                    categories=question.categories,
                    positions=question.positions,
                )
                return Place(own, index, each.target)
    return None


def learned_map(
    subject: Subject,
    question: Question,
    categories: Ints,
    progress: Progress,
    of: Of = "categories",
) -> LearnedMap | None:
    """The mean z and ||r|| of a model over the behaviours of its rows, each at its position and interval.

    Which items are behaved towards, and who is asked, differs from position to position, so that the means
    of a model that knows no time differ too. `of="categories"` lets a behaviour stand by the mean
    vector of its category, and a target likewise: what differs then is what the model makes of
    position and interval, and one that knows neither is flat.

    Sums only are kept: S x K x K x P of them, and the mean vectors.

    Args:
        subject: the model; its samples must have their columns.
        question: which behaviours and targets.
        categories: (K,) ids.
        progress: told the rows done.
        of: `behaviours` takes them as they are.

    Returns:
        None where the model does not read these behaviours, or has no sequence module for them.

    Raises:
        UserError: its module is of a kind whose sum is not known.
    """
    place = place_of(subject, question)
    readers = [] if place is None else readers_of_sequence(subject, place.sequence)
    if place is None or not readers:
        return None
    names = set_names(subject, readers)
    passes = 2 if of == "categories" else 1
    means = _Means(subject, place, categories, progress) if of == "categories" else None
    sums = _Sums(len(names), (len(categories), len(categories), question.positions))
    done = (passes - 1) * subject.num_rows
    for sample in subject.samples():
        events = events_of(place.question, sample.columns, categories)
        given = only(sample.inputs.sequences[place.sequence], events)
        sums.add(readers, given if means is None else means.instead(given, events), events)
        done += len(events.of_target)
        progress(DOING.format(subject.name), done, passes * subject.num_rows)
    logits, norms = sums.means()
    return LearnedMap(
        categories=categories,
        sets=names,
        logits=logits,
        norms=norms,
        support=sums.support(),
        is_exponential=readers[0].is_exponential,
        is_standardised=readers[0].is_standardised,
    )


class _Means:
    """Mean vectors of behaviours and targets by category, in every set.

    Args:
        subject: the model.
        place: its sequence.
        categories: (K,) ids.
        progress: told the rows done, of two passes.
    """

    def __init__(
        self, subject: Subject, place: Place, categories: Ints, progress: Progress
    ) -> None:
        size = len(categories)
        counts = torch.zeros(2, size, 1, dtype=torch.float64)
        sums: tuple[list[Tensor], list[Tensor]] = ([], [])
        done = 0
        for sample in subject.samples():
            events = events_of(place.question, sample.columns, categories)
            given = only(sample.inputs.sequences[place.sequence], events)
            rows = np.flatnonzero(events.of_target >= 0)
            of_targets = [each[torch.from_numpy(rows)] for each in _targets(given)]
            for kind, (vectors, owner) in enumerate(
                ((_behaviours(given), events.category), (of_targets, events.of_target[rows]))
            ):
                into = torch.from_numpy(owner)
                if not sums[kind]:
                    sums[kind].extend(
                        torch.zeros(size, each.shape[1], dtype=torch.float64) for each in vectors
                    )
                for total, each in zip(sums[kind], vectors, strict=True):
                    total.index_add_(0, into, each.double())
                counts[kind] += torch.bincount(into, minlength=size)[:, None]
            done += len(events.of_target)
            progress(DOING.format(subject.name), done, 2 * subject.num_rows)
        self._behaviours, self._targets = (
            [total / count.clamp(min=1) for total in of_kind]
            for of_kind, count in zip(sums, counts, strict=True)
        )

    def instead(self, given: SequenceInputs, events: Events) -> SequenceInputs:
        """Behaviours that count and their targets with mean vectors in the place of their own."""
        category = torch.from_numpy(events.category)
        of_target = torch.from_numpy(events.of_target).clamp(min=0)
        behaviours = [mean[category] for mean in self._behaviours]
        targets = [mean[of_target] for mean in self._targets]
        sets = len(given.behaviours)
        attention = None if given.attention is None else [behaviours[sets], targets[sets]]
        return replace(
            given, behaviours=behaviours[:sets], targets=targets[:sets], attention=attention
        )


def only(given: SequenceInputs, events: Events) -> SequenceInputs:
    """A sequence without the behaviours that do not count; those that do keep position and interval."""
    kept = torch.from_numpy(events.kept)
    rows = np.arange(len(events.of_target) + 1)
    attention = given.attention
    return SequenceInputs(
        behaviours=[each[kept] for each in given.behaviours],
        targets=given.targets,
        attention=None if attention is None else [attention[0][kept], attention[1]],
        offsets=torch.from_numpy(np.searchsorted(events.row, rows)),
        positions=given.positions[kept],
        intervals=None if given.intervals is None else given.intervals[kept],
    )


def _behaviours(given: SequenceInputs) -> list[Tensor]:
    """Vectors (T, W) of behaviours in every set, that of the attention last."""
    return given.behaviours + ([] if given.attention is None else given.attention[:1])


def _targets(given: SequenceInputs) -> list[Tensor]:
    """Vectors (B, W) of targets in every set, that of the attention last."""
    return given.targets + ([] if given.attention is None else given.attention[1:])


class _Sums:
    """Sums of z and ||r|| of S sets by cell of a map.

    Args:
        num_sets: S.
        shape: (K, K, P).
    """

    def __init__(self, num_sets: int, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._count = np.zeros(int(np.prod(shape)), np.int64)
        self._sums = np.zeros((2, num_sets, len(self._count)))

    def add(self, readers: Sequence[Reader], given: SequenceInputs, events: Events) -> None:
        """Add the behaviours that count, those of `given`, to their cells."""
        self._count += np.bincount(events.cell, minlength=len(self._count))
        found = [strength(reader, given) for reader in readers]
        logits = torch.cat([each.logits for each in found]).numpy()
        norms = torch.cat([each.norms for each in found]).numpy()
        for sums, values in zip(self._sums, (logits, norms), strict=True):
            for of_set, row in zip(sums, values, strict=True):
                of_set += np.bincount(events.cell, row, len(self._count))

    def means(self) -> tuple[Floats, Floats]:
        """(S, K, K, P) mean z and mean ||r||, NaN without a behaviour."""
        with np.errstate(invalid="ignore"):
            logits, norms = np.where(self._count > 0, self._sums / self._count, np.nan)
        shape = (len(logits), *self._shape)
        return logits.reshape(shape), norms.reshape(shape)

    def support(self) -> Ints:
        """(K, K, P) behaviours in each cell."""
        return self._count.reshape(self._shape)


def readers_of_sequence(subject: Subject, sequence: int) -> list[Reader]:
    """The modules of a model that read one of its sequences."""
    return [each for each in readers_of(subject.model) if each.sequence == sequence]


def set_names(subject: Subject, readers: Sequence[Reader]) -> tuple[str, ...]:
    """Names of the sets that modules read, in their order."""
    sets, _ = split_sets(subject.spec, subject.recipe.model)
    return tuple(sets[index].name for reader in readers for index in reader.sets)
