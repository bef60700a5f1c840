"""What the numbers of a recipe make of its tables: rows, where they begin, and encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prismrec.config import Recipe, UserError
from prismrec.config.embedding import TableOptions
from prismrec.config.numbers import MNSE, NumberFeature
from prismrec.data.encode.encoders import Encoder, Mask, TableRows
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.numbers.digits import DigitEncoder, DigitForm
from prismrec.data.encode.numbers.quantise import Levels
from prismrec.data.encode.numbers.source import ColumnSource
from prismrec.data.encode.numbers.statistics import NumberStatistics, read_statistics
from prismrec.data.schema import DataSchema

FIT_AGAIN = "run `prismrec data fit` again"


@dataclass(frozen=True, slots=True)
class Start:
    """Rows of a table that begin with numbers drawn evenly around 0; all others begin at 0.

    Args:
        first: the first row.
        stop: the row after the last.
        std: standard deviation of the numbers.
    """

    first: int
    stop: int
    std: float


@dataclass(frozen=True, slots=True)
class NumberPart:
    """The rows of one table that one number has, or several that share them.

    Args:
        name: of the rows.
        first: the first of them.
        form: what they stand for.
        std: standard deviation of the sum of rows that a value looks up, at the beginning.
    """

    name: str
    first: int
    form: DigitForm
    std: float

    @property
    def start(self) -> Start:
        """How its rows begin: digits so that their sum has the deviation, states at 0."""
        rows = self.form.rows if self.form.flag_row is None else self.form.flag_row
        return Start(self.first, self.first + rows, self.std / self.form.width**0.5)


@dataclass(frozen=True, slots=True)
class NumberRows:
    """The rows of a table of numbers, as `prismrec.embeddings.row_ids` compares them.

    Args:
        rows: all rows.
        parts: those of each number.
    """

    rows: TableRows
    parts: tuple[NumberPart, ...]


@dataclass(frozen=True, slots=True)
class NumberTable:
    """One table as its numbers see it.

    Args:
        name: of the table.
        options: what the recipe says of it.
        rows: all of them stand for something.
        parts: which number has which rows.
    """

    name: str
    options: TableOptions
    rows: TableRows
    parts: tuple[NumberPart, ...]

    @property
    def kind(self) -> str:
        """What stands in the place of a kind of ids."""
        return "number"

    @property
    def rows_per_id(self) -> int:
        """Most rows that a value looks up."""
        return max(part.form.bag for part in self.parts)

    @property
    def starts(self) -> tuple[Start, ...]:
        """How the rows begin."""
        return tuple(part.start for part in self.parts)

    def encoder(self) -> NumberRows:
        """What the rows stand for."""
        return NumberRows(self.rows, self.parts)


@dataclass(frozen=True, slots=True)
class NumberCodes:
    """A number of a recipe, from columns to codes.

    Args:
        name: of the number.
        source: where it comes from.
        levels: how it is spread over levels.
    """

    name: str
    source: ColumnSource
    levels: Levels

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Ints:
        """(n,) codes of n rows of its columns."""
        return self.levels(self.source(arrays))


@dataclass(frozen=True, slots=True)
class NumberEncoder:
    """From codes of a number to rows of one of its tables.

    Args:
        number: gives the codes.
        encoder: takes them.
    """

    number: NumberCodes
    encoder: DigitEncoder

    @property
    def rows(self) -> TableRows:
        """Those of the table."""
        return self.encoder.rows

    @property
    def rows_per_id(self) -> int:
        """Rows that a code looks up; their sum is its vector."""
        return self.encoder.rows_per_id

    def __call__(self, ids: Ints) -> tuple[Ints, Mask | None]:
        """See `prismrec.data.encode.encoders.Encoder`."""
        return self.encoder(ids)


def number_tables(recipe: Recipe) -> dict[str, NumberTable]:
    """Every table that the numbers of a recipe look up, by name, in the order of the numbers."""
    parts: dict[str, dict[str, NumberPart]] = {}
    ends: dict[str, int] = {}
    for number in recipe.features.numbers:
        for lookup in number.lookups:
            of_table = parts.setdefault(lookup.table_name, {})
            if number.rows_of in of_table:
                continue
            form = _form(number.encoding, lookup.base)
            first = ends.get(lookup.table_name, 0)
            std = number.encoding.init_std
            of_table[number.rows_of] = NumberPart(number.rows_of, first, form, std)
            ends[lookup.table_name] = first + form.rows
    options = recipe.embedding.tables
    return {
        name: NumberTable(
            name,
            options.get(name) or TableOptions(),
            TableRows(ends[name], 0),
            tuple(each.values()),
        )
        for name, each in parts.items()
    }


def number_encoders(recipe: Recipe, schema: DataSchema) -> dict[str, Encoder]:
    """The encoder of every field that is looked up by a number.

    Raises:
        UserError: a column is missing or of another kind, or the statistics cannot be read, or hold
            nothing of a number.
    """
    tables, known = number_tables(recipe), read_statistics(recipe)
    encoders: dict[str, Encoder] = {}
    for index, number in enumerate(recipe.features.numbers):
        schema.column(number.source, ("number",), f"features.numbers[{index}]")
        codes = NumberCodes(
            number.name, ColumnSource(number.source), levels_of(number, known.get(number.name))
        )
        for lookup in number.lookups:
            table = tables[lookup.table_name]
            part = next(each for each in table.parts if each.name == number.rows_of)
            encoder = DigitEncoder(table.rows, part.form, part.first)
            encoders[lookup.name] = NumberEncoder(codes, encoder)
    return encoders


def _form(encoding: MNSE, base: int) -> DigitForm:
    return DigitForm(base, encoding.width(base), encoding.levels, encoding.mode)


def levels_of(number: NumberFeature, known: NumberStatistics | None) -> Levels:
    """How a number is spread over levels.

    Args:
        number: of the recipe.
        known: its statistics; None where the encoding needs none.

    Raises:
        UserError: the statistics leave nothing to encode, or do not go with the encoding.
    """
    encoding, boundaries = number.encoding, None
    if encoding.quantiser == "cosine":
        return Levels("cosine", encoding.levels, -1.0, 1.0)
    where = f"features.numbers '{number.name}'"
    if known is not None and known.is_magnitude != (encoding.negative == "sign"):
        raise UserError(f"{where}: the statistics are of another `negative`; {FIT_AGAIN}")
    low, high = _range(encoding, known)
    if encoding.quantiser == "cdf":
        assert known is not None
        boundaries = np.array(known.boundaries)
        if len(boundaries) != encoding.levels - 1:
            raise UserError(
                f"{where}: the statistics are for {len(boundaries) + 1} levels, not for "
                f"{encoding.levels}; {FIT_AGAIN}"
            )
    if encoding.quantiser == "count" and high - low >= encoding.levels:
        raise UserError(
            f"{where}: 'count' from {low:g} to {high:g} needs {high - low + 1:g} levels, but levels "
            f"= {encoding.levels}; raise it, give low and high, or use another quantiser"
        )
    if not low < high:
        raise UserError(
            f"{where}: almost all training rows have the same number, {low:g}; give low and high, or "
            "leave the number out"
        )
    has_sign = encoding.negative == "sign"
    return Levels(
        encoding.quantiser, encoding.levels, low, high, encoding.unit, boundaries, has_sign
    )


def _range(encoding: MNSE, known: NumberStatistics | None) -> tuple[float, float]:
    """The recipe's range, what it leaves open taken from the statistics."""
    low = 0.0 if encoding.negative == "sign" else encoding.low
    high = encoding.high
    if low is None:
        assert known is not None  # the recipe was refused otherwise
        low = max(0.0, known.low) if encoding.negative == "clamp" else known.low
    if high is None:
        assert known is not None
        high = known.high
    if encoding.quantiser == "count":
        return float(math.floor(low)), float(math.floor(high))
    return low, high
