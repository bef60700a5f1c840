"""From columns to codes and rows, for the numbers of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.encodings import (
    MNSE,
    LogBucket,
    PiecewiseLinear,
    QuantileBucket,
    Ranged,
    Scaled,
)
from prismrec.config.numbers import NumberFeature
from prismrec.data.encode.encoders import Encoder, Mask, TableRows
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.numbers.buckets import LogBuckets, QuantileBuckets
from prismrec.data.encode.numbers.quantise import Doubles, Levels
from prismrec.data.encode.numbers.scale import Position, Scaler, Share
from prismrec.data.encode.numbers.similarity import similarity_source
from prismrec.data.encode.numbers.source import ColumnSource, NumberSource
from prismrec.data.encode.numbers.statistics import NumberStatistics, read_statistics
from prismrec.data.encode.numbers.tables import NumberPart, number_tables
from prismrec.data.schema import DataSchema


@dataclass(frozen=True, slots=True)
class NumberCodes:
    """A number of a recipe, from columns to codes.

    Args:
        name: of the number.
        source: where it comes from.
        code: from numbers to codes, `NULL_ID` for NaN.
    """

    name: str
    source: NumberSource
    code: Callable[[Doubles], Ints]

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Ints:
        """(n,) codes of n rows of its columns."""
        return self.code(self.source(arrays))


@dataclass(frozen=True, slots=True)
class NumberEncoder:
    """From codes of a number to rows of one of its tables; an `Encoder` whose ids are the codes.

    Args:
        number: gives the codes.
        rows: those of the table, all its numbers together.
        part: those of the number.
    """

    number: NumberCodes
    rows: TableRows
    part: NumberPart

    @property
    def rows_per_id(self) -> int:
        """Rows that a code looks up; their sum is its vector."""
        return self.part.form.bag

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """Rows of codes, and which of them stand for a missing number or one out of range."""
        found = self.part.form.rows_of(ids)
        found += self.part.first
        odd = self.part.form.odd(ids)
        flat = found.reshape(*ids.shape[:-1], ids.shape[-1] * self.rows_per_id)
        return flat, odd if odd.any() else None


def number_encoders(recipe: Recipe, schema: DataSchema) -> dict[str, Encoder]:
    """The encoder of every field that is looked up by a number.

    Raises:
        UserError: a column is missing or of another kind, or the statistics cannot be read, or hold
            nothing of a number.
    """
    tables, known = number_tables(recipe), read_statistics(recipe)
    encoders: dict[str, Encoder] = {}
    for index, number in enumerate(recipe.features.numbers):
        if number.encoding.is_looked_up:
            source = number_source(recipe, index, schema)
            codes = NumberCodes(number.name, source, code_of(number, known.get(number.name)))
            for lookup in number.lookups:
                table = tables[lookup.table_name]
                part = table.part(number.rows_of)
                encoders[lookup.name] = NumberEncoder(codes, table.rows, part)
    return encoders


def number_scalers(recipe: Recipe, schema: DataSchema) -> tuple[Scaler, ...]:
    """The scalers of the numbers that modules of the model read, in the order of the numeric columns.

    Raises:
        UserError: see `number_encoders`.
    """
    known = read_statistics(recipe)
    return tuple(
        Scaler(number.name, number_source(recipe, index, schema), _place(number, known))
        for index, number in enumerate(recipe.features.numbers)
        if not number.encoding.is_looked_up
    )


def number_source(recipe: Recipe, index: int, schema: DataSchema) -> NumberSource:
    """Where a number of a recipe comes from.

    Args:
        recipe: the recipe.
        index: of the number in `features.numbers`.
        schema: of the data set.

    Raises:
        UserError: a column is missing or of another kind, or vectors cannot be read.
    """
    number = recipe.features.numbers[index]
    if number.similarity is not None:
        return similarity_source(number, schema)
    schema.column(number.source, ("number",), f"features.numbers[{index}]")
    return ColumnSource(number.source)


def code_of(number: NumberFeature, known: NumberStatistics | None) -> Callable[[Doubles], Ints]:
    """How a number that is looked up becomes codes.

    Args:
        number: of the recipe.
        known: its statistics; None where the encoding needs none.

    Raises:
        UserError: the statistics leave nothing to encode.
    """
    encoding = number.encoding
    if isinstance(encoding, LogBucket):
        return LogBuckets(encoding.buckets)
    if isinstance(encoding, QuantileBucket):
        assert known is not None  # the recipe was refused otherwise
        return QuantileBuckets(np.unique(known.quantiles))
    assert isinstance(encoding, MNSE)
    return _levels(number, encoding, known)


def _levels(number: NumberFeature, encoding: MNSE, known: NumberStatistics | None) -> Levels:
    if encoding.quantiser == "cosine":
        return Levels("cosine", encoding.levels, -1.0, 1.0)
    at_least = 0.0 if encoding.negative == "clamp" else -math.inf
    low, high = _range(number, encoding, known, at_least)
    if encoding.quantiser == "count":
        low, high = float(math.floor(low)), float(math.floor(high))
        if high - low >= encoding.levels:
            raise UserError(
                f"features.numbers '{number.name}': 'count' from {low:g} to {high:g} needs "
                f"{high - low + 1:g} levels, but levels = {encoding.levels}; raise it, give low and "
                "high, or use another quantiser"
            )
    boundaries = np.array(known.quantiles) if known and encoding.quantiser == "cdf" else None
    return Levels(
        encoding.quantiser,
        encoding.levels,
        low,
        high,
        encoding.unit,
        boundaries,
        encoding.is_magnitude,
    )


def _place(
    number: NumberFeature, known: Mapping[str, NumberStatistics]
) -> Callable[[Doubles], Doubles]:
    """How a number that a module reads is scaled."""
    encoding, its = number.encoding, known.get(number.name)
    if isinstance(encoding, PiecewiseLinear):
        assert its is not None  # the recipe was refused otherwise
        edges = np.unique(its.quantiles)
        if len(edges) < 2:
            raise _constant(number, float(edges[0]))
        return Position(edges, encoding.bins)
    assert isinstance(encoding, Scaled)
    low, high = _range(number, encoding, its, -math.inf)
    boundaries = np.array(its.quantiles) if its and encoding.scale == "cdf" else None
    return Share(Levels(encoding.scale, 2, low, high, encoding.unit, boundaries))


def _range(
    number: NumberFeature, encoding: Ranged, known: NumberStatistics | None, at_least: float
) -> tuple[float, float]:
    """The recipe's range, what it leaves open taken from the statistics."""
    low = 0.0 if encoding.is_magnitude else encoding.low
    high = encoding.high
    if low is None:
        assert known is not None  # the recipe was refused otherwise
        low = max(at_least, known.low)
    if high is None:
        assert known is not None
        high = known.high
    if not low < high:
        raise _constant(number, low)
    return low, high


def _constant(number: NumberFeature, value: float) -> UserError:
    return UserError(
        f"features.numbers '{number.name}': almost all training rows have the same number, {value:g}; "
        "give low and high, or leave the number out"
    )
