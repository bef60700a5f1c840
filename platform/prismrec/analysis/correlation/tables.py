"""The learned map that the vectors of categories and positions give by themselves, as the sources draw it.

Every behaviour is its category alone: what its item says is left out, and so is how long ago it was. The
attention of DIN is a network, which the released code replaces by an inner product here.

Source: released code of TIN (arXiv:2308.08487) and DARE (arXiv:2410.02604).

Notation: K categories, P positions, d width of a category's vector in a set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prismrec.analysis.correlation.learned import (
    LearnedMap,
    Place,
    place_of,
    readers_of_sequence,
)
from prismrec.analysis.correlation.modules import Reader
from prismrec.analysis.correlation.truth import Question
from prismrec.analysis.subject import Subject
from prismrec.config import UserError
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.values import ints
from prismrec.embeddings.sets import EmbeddingSet
from prismrec.models import Inputs
from prismrec.models.assembly import split_sets
from prismrec.models.sequence import DARE, DIN, TIM
from prismrec.models.sequence.temporal import Temporal
from prismrec.train.metrics.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of categories and positions.

    Args:
        categories: (K, d).
        positions: (P + 1, d'), the target's first; None where positions are not told apart.
        is_behind: whether a position's vector stands behind a category's, else it is added.
    """

    categories: Tensor
    positions: Tensor | None
    is_behind: bool

    def encoded(self, count: int) -> tuple[Tensor, Tensor]:
        """Behaviours (K, P, W) and targets (K, W) for P = `count` positions."""
        behaviours = self.categories[:, None].expand(-1, count, -1)
        if self.positions is None:
            return behaviours, self.categories
        of_target, of_behaviours = self.positions[0], self.positions[1:]
        if not self.is_behind:
            return behaviours + of_behaviours, self.categories + of_target
        size = len(self.categories)
        return (
            torch.cat([behaviours, of_behaviours.expand(size, -1, -1)], -1),
            torch.cat([self.categories, of_target.expand(size, -1)], -1),
        )

    def logits(self, count: int) -> Tensor:
        """(K, K, P) inner products of targets and behaviours over the root of their width.

        Vectors that stand behind are a part by themselves with a root of their own.
        """
        behaviours, targets = self.encoded(count)
        width = self.categories.shape[-1]
        cuts = (width, behaviours.shape[-1] - width)
        parts = zip(behaviours.split(cuts, -1), targets.split(cuts, -1), strict=True)
        products = [
            torch.einsum("kpd,td->tkp", b, t) / math.sqrt(b.shape[-1])
            for b, t in parts
            if b.shape[-1]
        ]
        return torch.stack(products).sum(0)


def table_map(subject: Subject, question: Question, categories: Ints) -> LearnedMap | None:
    """The map of a model's vectors of categories and positions.

    Args:
        subject: the model; its rows are read until every category was a target once.
        question: which behaviours and targets.
        categories: (K,) ids.

    Returns:
        None where the model does not read these behaviours, or has no sequence module for them.

    Raises:
        UserError: a category is in none of the rows, no set has vectors of the target, or the module is
            of a kind that is not known.
    """
    place = place_of(subject, question)
    readers = [] if place is None else readers_of_sequence(subject, place.sequence)
    if place is None or not readers:
        return None
    found = _category_vectors(subject, place, categories)
    sets, attention = split_sets(subject.spec, subject.recipe.model)
    kept: list[tuple[str, Tensor, Tensor]] = []
    for reader, copy, index in ((r, c, i) for r in readers for c, i in enumerate(r.sets)):
        of_set = attention if isinstance(reader.module, DARE) else sets[index]
        assert of_set is not None
        if of_set.covers(place.target):
            part = _part(subject, place, of_set)
            vectors = found[of_set.name][:, part]
            kept.append((sets[index].name, *_map_of(reader, copy, vectors, part, question)))
    if not kept:
        raise UserError(
            f"{subject.name}: no set that reads the history has vectors of '{place.target}'"
        )
    return LearnedMap(
        categories=categories,
        sets=tuple(name for name, _, _ in kept),
        logits=_stacked([logits for _, logits, _ in kept]),
        norms=_stacked([norms for _, _, norms in kept]),
        support=None,
        is_exponential=readers[0].is_exponential,
        is_standardised=readers[0].is_standardised,
    )


def _map_of(
    reader: Reader, copy: int, vectors: Tensor, part: slice, question: Question
) -> tuple[Tensor, Tensor]:
    """Z and ||r||, (K, K, P) each, of one copy of a module."""
    module, count = reader.module, question.positions
    shape = (len(vectors), len(vectors), count)
    if isinstance(module, DIN):
        z = (vectors @ vectors.t())[:, :, None].expand(shape)
        return z, vectors.norm(dim=-1)[None, :, None].expand(shape)
    if isinstance(module, DARE):
        given = Vectors(vectors, *_positions(module.of_attention, 0, part, count))
        return given.logits(count), torch.ones(shape, dtype=torch.float64)
    if not isinstance(module, TIM):
        raise UserError(f"correlation: there is no map of the tables of a {type(module).__name__}")
    given = Vectors(vectors, *_positions(module.temporal, copy, part, count))
    behaviours, targets = given.encoded(count)
    r = behaviours.expand(shape[0], *behaviours.shape)
    if module.representation:
        r = r * targets[:, None, None]
    z = given.logits(count) if module.attention else torch.zeros(shape, dtype=torch.float64)
    return z, r.norm(dim=-1)


def _positions(
    temporal: Temporal, copy: int, part: slice, count: int
) -> tuple[Tensor | None, bool]:
    """Vectors of positions 0 to `count`, those beside a category's vector, and whether they stand behind it."""
    table = temporal.positions
    if table is None:
        return None, False
    own = table.detach()[copy] if table.dim() == 3 else table.detach()
    rows = torch.arange(count + 1).clamp(max=len(own) - 1)
    return own[rows] if temporal.concat else own[rows][:, part], temporal.concat


def _part(subject: Subject, place: Place, of_set: EmbeddingSet) -> slice:
    """Where the category's vector is among those of a behaviour's sides in a set."""
    sides = subject.spec.sequences[place.sequence].behaviours
    covered = [each.target for each in sides if of_set.covers(each.target)]
    at = covered.index(place.target) * of_set.dim
    return slice(at, at + of_set.dim)


def _category_vectors(subject: Subject, place: Place, categories: Ints) -> dict[str, Tensor]:
    """By set, the vectors (K, W) of the first row that each category is the target of."""
    sets, attention = split_sets(subject.spec, subject.recipe.model)
    found: dict[str, Tensor] = {}
    left = set(range(len(categories)))
    for sample in subject.samples():
        ids = ints(sample.columns[place.question.target], NULL_ID)
        firsts = {at: np.flatnonzero(ids == categories[at]) for at in left}
        firsts = {at: rows[:1] for at, rows in firsts.items() if len(rows)}
        for name, vectors in _targets(sample.inputs, place, sets, attention).items():
            kept = found.setdefault(
                name, torch.zeros(len(categories), vectors.shape[1], dtype=torch.float64)
            )
            for at, rows in firsts.items():
                kept[at] = vectors[int(rows[0])].double()
        left -= firsts.keys()
        if not left:
            return found
    missing = ", ".join(str(int(categories[at])) for at in sorted(left))
    raise UserError(
        f"{subject.name}: no row looked at has {missing} as '{place.target}'; look at more rows"
    )


def _targets(
    inputs: Inputs, place: Place, sets: list[EmbeddingSet], attention: EmbeddingSet | None
) -> dict[str, Tensor]:
    given = inputs.sequences[place.sequence]
    of_sets = {each.name: given.targets[index] for index, each in enumerate(sets)}
    if attention is not None and given.attention is not None:
        of_sets[attention.name] = given.attention[1]
    return of_sets


def _stacked(maps: list[Tensor]) -> Floats:
    return torch.stack(maps).double().numpy()
