"""From what the tables give to the inputs of a model, the same in training and serving.

Notation: B rows, N_m fields that set m covers, d_m its width, T behaviours of a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prismrec.config.models.sequence import attention_set
from prismrec.config.section import Section
from prismrec.embeddings.jagged import SetSequence
from prismrec.embeddings.sets import LINEAR, EmbeddingSet, EmbeddingSpec, SequenceLookup
from prismrec.models.inputs import SequenceInputs, SequenceShape


def split_sets(
    spec: EmbeddingSpec, model: Section
) -> tuple[list[EmbeddingSet], EmbeddingSet | None]:
    """The sets that a model's experts read, and the one that only weighs behaviours, if there is one.

    Args:
        spec: the sets.
        model: the recipe's section.
    """
    name = attention_set(getattr(model, "sequence", None))
    sets = [each for each in spec.sets if each.name != LINEAR]
    of_attention = [each for each in sets if each.name == name]
    return [each for each in sets if each.name != name], next(iter(of_attention), None)


def sequence_shapes(spec: EmbeddingSpec, model: Section) -> tuple[SequenceShape, ...]:
    """The shapes of a model's sequences."""
    sets, attention = split_sets(spec, model)
    return tuple(
        SequenceShape(
            widths=tuple(_width(each, sequence) for each in sets),
            attention=None if attention is None else _width(attention, sequence),
            positions=sequence.positions,
            intervals=sequence.intervals,
        )
        for sequence in spec.sequences
    )


class Assembly:
    """Sorts the tensors of all sets into those that experts read, first-order weights and sequences.

    Args:
        spec: the sets and sequences.
        model: the recipe's section of the model.
        num_logits: columns of the first-order weights that are used.
    """

    def __init__(self, spec: EmbeddingSpec, model: Section, num_logits: int) -> None:
        self._has_linear = any(each.name == LINEAR for each in spec.sets)
        self._num_logits = num_logits
        sets = [each for each in spec.sets if each.name != LINEAR]
        read, attention = split_sets(spec, model)
        self._read = [sets.index(each) for each in read]
        self._attention = None if attention is None else sets.index(attention)
        self._targets = [
            [
                [
                    spec.fields_of(each).index(b.target)
                    for b in sequence.behaviours
                    if each.covers(b.target)
                ]
                for each in sets
            ]
            for sequence in spec.sequences
        ]

    def linear(self, sets: list[Tensor]) -> Tensor | None:
        """First-order weights (B, N, T), where the model has some."""
        return sets[-1][:, :, : self._num_logits] if self._has_linear else None

    def sets(self, sets: list[Tensor]) -> list[Tensor]:
        """The sets that experts read, (B, N_m, d_m) each."""
        return [sets[index] for index in self._read]

    def sequences(self, sets: list[Tensor], found: list[SetSequence]) -> list[SequenceInputs]:
        """The sequences as the model sees them.

        Args:
            sets: the tensors (B, N_m, d_m) of all sets.
            found: the sequences as all sets see them.
        """
        return [
            self._sequence(sets, each, places)
            for each, places in zip(found, self._targets, strict=True)
        ]

    def _sequence(
        self, sets: list[Tensor], found: SetSequence, places: list[list[int]]
    ) -> SequenceInputs:
        behaviours = [each.float() for each in found.behaviours]
        targets = [_targets(sets[index], of_set) for index, of_set in enumerate(places)]
        at = self._attention
        return SequenceInputs(
            behaviours=[behaviours[index] for index in self._read],
            targets=[targets[index] for index in self._read],
            attention=None if at is None else [behaviours[at], targets[at]],
            offsets=found.offsets,
            positions=found.positions,
            intervals=found.intervals,
        )


def _width(of_set: EmbeddingSet, sequence: SequenceLookup) -> int:
    return of_set.dim * sum(of_set.covers(each.target) for each in sequence.behaviours)


def _targets(vectors: Tensor, places: list[int]) -> Tensor:
    """Some fields of (B, N_m, d_m) side by side."""
    if not places:
        return vectors.new_zeros(len(vectors), 0)
    return torch.cat([vectors[:, place] for place in places], 1)
