"""What a sequence module makes of every behaviour: how much it counts, and the vector that is summed.

The logit z of a behaviour and the length of the vector r that the module sums for it. Their product
exp(z) ||r|| is how strongly a behaviour moves the module's output, before the weights of a row are made
to sum to 1.

Source: "Temporal Interest Network for User Response Prediction" (WWW 2024), section on learned correlation.

Notation: B rows, T behaviours, M copies of a module, W width of the vectors of a set.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from prismrec.config import UserError
from prismrec.embeddings.jagged import row_of
from prismrec.models.inputs import SequenceInputs
from prismrec.models.sequence import DARE, DIN, TIM, EmptyToken, Order, SequenceModule
from prismrec.models.sequence.base import by_value
from prismrec.models.sequence.sources import SequenceVectors, module_inputs

Attention = tuple[Tensor, Tensor] | None
"""Behaviours (T, A) and targets (B, A) of the set that only weighs behaviours."""


@dataclass(frozen=True, slots=True)
class Strength:
    """What a module makes of behaviours.

    Args:
        logits: (M, T) z; what the softmax over a row's behaviours is taken of, where there is one.
        norms: (M, T) length of r.
    """

    logits: Tensor
    norms: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """A sequence module of a model.

    Args:
        module: a copy of the module, in float64.
        sequence: index of the sequence that it reads.
        sets: the sets that its copies read, as indices of `Inputs.sets`.
    """

    module: SequenceModule
    sequence: int
    sets: tuple[int, ...]

    @property
    def is_exponential(self) -> bool:
        """Whether behaviours count by exp(z); where scores are summed as they are, by z."""
        return not isinstance(self.module, DIN) or self.module.is_softmax

    @property
    def is_standardised(self) -> bool:
        """Whether z is standardised in the published maps; that of DARE is not."""
        return not isinstance(self.module, DARE)


def readers_of(model: nn.Module) -> list[Reader]:
    """Copies of the sequence modules of a model, without what tells empty histories apart."""
    found = []
    for vectors in (each for each in model.modules() if isinstance(each, SequenceVectors)):
        for (sequence, sets), reader in zip(vectors.groups, vectors.readers, strict=True):
            inner = reader.reader if isinstance(reader, EmptyToken) else reader
            assert isinstance(inner, SequenceModule)
            # In float64: what does not depend on the position must come out equal at every position.
            found.append(Reader(copy.deepcopy(inner).double(), sequence, sets))
    return found


def strength(reader: Reader, given: SequenceInputs) -> Strength:
    """The logit and the length of the summed vector of each behaviour of a batch.

    Args:
        reader: its module is a TIM, DIN or DARE.
        given: its sequence.

    Raises:
        UserError: the module is of another kind.
    """
    behaviours, targets, order, attention = module_inputs(given, reader.sets)
    if attention is not None:
        attention = (attention[0].double(), attention[1].double())
    with torch.no_grad():
        logits, norms = _strength(
            reader.module, behaviours.double(), targets.double(), order, attention
        )
    shape = behaviours.shape[:-1]
    return Strength(_by_copy(logits, shape), _by_copy(norms, shape))


@singledispatch
def _strength(
    module: SequenceModule, behaviours: Tensor, targets: Tensor, order: Order, attention: Attention
) -> tuple[Tensor, Tensor]:
    raise UserError(
        f"correlation: what a {type(module).__name__} sums is not known; maps are there for "
        "'tim', 'din' and 'dare'"
    )


@_strength.register
def _tim(
    module: TIM, behaviours: Tensor, targets: Tensor, order: Order, attention: Attention
) -> tuple[Tensor, Tensor]:
    """R is e * v, or e where the module does not multiply by the target."""
    logits = module.logits(behaviours, targets, order)
    encoded, target = module.temporal(by_value(behaviours), by_value(targets), order)
    if module.representation:
        encoded = encoded * target[row_of(order.offsets, len(encoded))]
    return logits, encoded.norm(dim=-1).movedim(0, -1)


@_strength.register
def _din(
    module: DIN, behaviours: Tensor, targets: Tensor, order: Order, attention: Attention
) -> tuple[Tensor, Tensor]:
    """R is e."""
    logits = module.logits(behaviours, targets, order)
    if module.is_softmax:
        logits = logits / math.sqrt(module.width)
    return logits, behaviours.norm(dim=-1)


@_strength.register
def _dare(
    module: DARE, behaviours: Tensor, targets: Tensor, order: Order, attention: Attention
) -> tuple[Tensor, Tensor]:
    """The map of the attention alone, as published: r is of length 1."""
    assert attention is not None
    logits = module.logits(behaviours, targets, order, attention)
    return logits, torch.ones_like(logits)


def _by_copy(values: Tensor, shape: torch.Size) -> Tensor:
    """([M,] T) as (M, T); one for all copies where it has none of its own."""
    return values.expand(shape).reshape(math.prod(shape[:-1]), shape[-1])
