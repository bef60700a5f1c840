"""A trained model to be looked at, and the rows it is looked at on.

Notation: B rows of a batch, T tasks, L ids that a field looks up in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from torch import Tensor, nn

from prismrec.config import Recipe
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.models import Inputs

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is in all."""


@dataclass(frozen=True, slots=True)
class FieldRows:
    """What a field looks up in a batch.

    Args:
        rows: (L,) int64 rows of its table.
        lengths: (B,) int64 rows that each row of the batch looks up.
    """

    rows: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """A batch of rows as the model sees them.

    Args:
        inputs: what the model's `forward` takes.
        labels: (B, T) float32, 0 or 1, NaN where a task has no valid label.
        fields: what every field of the spec looks up, in `EmbeddingSpec.fields`' order.
        columns: what the model reads of these rows, as it stands in the data set, by name.
    """

    inputs: Inputs
    labels: Tensor
    fields: Mapping[str, FieldRows]
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in one process, in evaluation mode, whole and not sharded.

    Args:
        name: what reports call it.
        recipe: what it was trained by.
        spec: its sets and tables.
        model: everything behind the lookup; takes `Inputs` and gives logits and auxiliary losses. Its
            weights may be read and its modules hooked, not changed.
        vectors: (L, d) fp32 vectors of rows (L,) int64 of a table in a set.
        samples: a new pass over the same rows, in the same order, each time it is called.
        num_rows: rows of such a pass.
    """

    name: str
    recipe: Recipe
    spec: EmbeddingSpec
    model: nn.Module
    vectors: Callable[[str, str, Tensor], Tensor]
    samples: Callable[[], Iterator[Sample]]
    num_rows: int
