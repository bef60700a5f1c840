"""What the numbers of a recipe make of its tables: which rows each has, and how they begin."""

from __future__ import annotations

from dataclasses import dataclass

from prismrec.config import Recipe
from prismrec.config.embedding import TableOptions
from prismrec.config.encodings import MNSE, Encoding, LogBucket, QuantileBucket
from prismrec.data.encode.encoders import TableRows
from prismrec.data.encode.numbers.buckets import BucketForm
from prismrec.data.encode.numbers.digits import DigitForm

Form = DigitForm | BucketForm
"""How codes are rows, counted from a number's first."""


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
    form: Form
    std: float

    @property
    def start(self) -> Start:
        """How its rows begin: so that the sum of a bag has the deviation."""
        deviation = self.std / self.form.added**0.5
        return Start(self.first, self.first + self.form.drawn, deviation)


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

    def part(self, name: str) -> NumberPart:
        """The rows of one name."""
        return next(each for each in self.parts if each.name == name)

    def encoder(self) -> NumberRows:
        """What the rows stand for."""
        return NumberRows(self.rows, self.parts)


def number_tables(recipe: Recipe) -> dict[str, NumberTable]:
    """Every table that the numbers of a recipe look up, by name, in the order of the numbers."""
    parts: dict[str, dict[str, NumberPart]] = {}
    for number in recipe.features.numbers:
        for table, (form, std) in _forms(number.encoding).items():
            of_table = parts.setdefault(table, {})
            if number.rows_of not in of_table:
                first = sum(each.form.rows for each in of_table.values())
                of_table[number.rows_of] = NumberPart(number.rows_of, first, form, std)
    return {name: _table(recipe, name, tuple(each.values())) for name, each in parts.items()}


def _table(recipe: Recipe, name: str, parts: tuple[NumberPart, ...]) -> NumberTable:
    options = recipe.embedding.tables.get(name) or TableOptions()
    rows = TableRows(sum(part.form.rows for part in parts), 0)
    return NumberTable(name, options, rows, parts)


def _forms(encoding: Encoding) -> dict[str, tuple[Form, float]]:
    """By table, the rows that an encoding needs there, and the deviation of their sums."""
    if isinstance(encoding, MNSE):
        return {
            table: (
                DigitForm(base, encoding.width(base), encoding.levels, encoding.mode),
                encoding.init_std,
            )
            for base, table in zip(encoding.bases, encoding.tables.values(), strict=True)
        }
    if isinstance(encoding, LogBucket | QuantileBucket):
        return {encoding.kind: (BucketForm(encoding.buckets), encoding.init_std)}
    return {}
