"""Numbers that tell how alike two vectors are, which others have learnt and nobody trains here.

Source: Pan et al., "Ads Recommendation in a Collapsed and Entangled World", KDD 2024, similarity encoding
embedding: what two vectors have to do with each other is taken over, and not the space that they lie in.

Notation: n rows, L items of all histories together, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prismrec.config import UserError
from prismrec.config.numbers import NumberFeature
from prismrec.data.encode.ids import NULL_ID, Ints
from prismrec.data.encode.numbers.quantise import Doubles
from prismrec.data.encode.numbers.vectors import NO_VECTOR, KnownVectors, known_vectors
from prismrec.data.schema import DataSchema
from prismrec.data.values import ints

Measure = Literal["cosine", "dot", "l2"]

_PAIRS = 1024
"""Pairs of vectors that are compared at a time: few enough to stay in the cache, which is four times as
fast."""


@dataclass(frozen=True, slots=True)
class SimilaritySource:
    """The similarity of the vectors of two columns.

    A side without a vector makes it missing, and so does one of length 0 for the cosine, which says
    nothing then. It is never taken for a similarity of 0, which is one like any other.

    Args:
        columns: of ids, to the left and to the right.
        left: vectors of the first.
        right: vectors of the second, as wide.
        measure: what a similarity is.
        history: what the similarities to the items of one row become; None where there is one item.
    """

    columns: tuple[str, str]
    left: KnownVectors
    right: KnownVectors
    measure: Measure
    history: Literal["mean", "max"] | None

    @property
    def text(self) -> str:
        """The source in words."""
        return f"the {self.measure} of '{self.columns[0]}' and '{self.columns[1]}'"

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Doubles:
        """(n,) similarities of n rows, NaN where one is missing."""
        left = self.left.rows_of(ints(arrays[self.columns[0]], NULL_ID))
        items = arrays[self.columns[1]]
        if self.history is None:
            return self._similarities(left, self.right.rows_of(ints(items, NULL_ID)))
        lengths = ints(pc.list_value_length(items), 0)
        of_items = self.right.rows_of(ints(items.flatten(), NULL_ID))
        return _of_rows(self._similarities(left.repeat(lengths), of_items), lengths, self.history)

    def _similarities(self, left: Ints, right: Ints) -> Doubles:
        """(p,) similarities of pairs of rows of the vectors, NaN where a side has none."""
        found = np.full(len(left), np.nan)
        known = np.flatnonzero((left != NO_VECTOR) & (right != NO_VECTOR))
        for start in range(0, len(known), _PAIRS):
            here = known[start : start + _PAIRS]
            found[here] = self._compare(left[here], right[here])
        return found

    def _compare(self, left: Ints, right: Ints) -> Doubles:
        first = self.left.vectors[left].astype(np.float64)
        second = self.right.vectors[right].astype(np.float64)
        if self.measure == "l2":
            return -np.sqrt(np.square(first - second).sum(axis=1))
        products = np.einsum("nd,nd->n", first, second)
        if self.measure == "dot":
            return products
        lengths = self.left.lengths[left] * self.right.lengths[right]
        cosines = products / np.where(lengths > 0, lengths, np.nan)
        return np.clip(cosines, -1.0, 1.0)


def _of_rows(values: Doubles, lengths: Ints, history: Literal["mean", "max"]) -> Doubles:
    """(n,) mean or largest of the values of each row that are not NaN, NaN where there is none.

    Args:
        values: (L,) of the items, row by row.
        lengths: (n,) items of each row.
        history: which of the two.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    known = ~np.isnan(values)
    values, owners = values[known], owners[known]
    counts = np.bincount(owners, minlength=len(lengths))
    found = np.full(len(lengths), np.nan)
    filled = counts > 0
    if filled.any():
        starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
        if history == "max":
            found[filled] = np.maximum.reduceat(values, starts)
        else:
            found[filled] = np.add.reduceat(values, starts) / counts[filled]
    return found


def similarity_source(number: NumberFeature, schema: DataSchema) -> SimilaritySource:
    """The source of a number of a recipe that is a similarity.

    Raises:
        UserError: a column is missing or of another kind, a file cannot be read, or the vectors of
            the two sides differ in width.
    """
    section = number.similarity
    assert section is not None
    where = f"features.numbers.{number.name}.similarity"
    schema.column(section.left.column, ("id",), f"{where}.left")
    is_history = schema.column(section.right.column, ("id", "ids"), f"{where}.right").kind == "ids"
    left, right = (
        known_vectors(side.vectors, f"{where}.{name}.vectors")
        for name, side in (("left", section.left), ("right", section.right))
    )
    if left.width != right.width:
        raise UserError(
            f"{where}: the vectors to the left have {left.width} numbers and those to the right "
            f"{right.width}; take both from one model"
        )
    columns = section.left.column, section.right.column
    return SimilaritySource(
        columns, left, right, section.measure, section.history if is_history else None
    )
