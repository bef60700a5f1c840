"""Recipe sections of numbers that become vectors: where a number comes from and how it is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prismrec.config.section import Section

MAX_LEVELS = 2**20
"""Most levels of a number; more than a float32 could tell apart would be noise."""

Quantiser = Literal["linear", "log1p", "asinh", "cdf", "count", "cosine"]


class MNSE(Section):
    """The number as an integer, written in several numeral systems; each digit has a vector.

    The digits of one system are rows of one table, whose sum is a field of the model.
    """

    kind: Literal["mnse"] = "mnse"
    bases: tuple[Annotated[int, Field(ge=2)], ...] = (2, 3, 10)
    """Numeral systems; a field of the model for each."""
    levels: int = Field(default=1024, ge=2, le=MAX_LEVELS)
    """Levels that the number is rounded to; about 4 times as many as are thought to matter."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Digits in each system; as few as hold every level if not given."""
    quantiser: Quantiser = "cdf"
    """How the number is spread over the levels: evenly between `low` and `high` (`linear`), on a scale
    of logarithms (`log1p`), of logarithms to both sides (`asinh`), by its rank among the training
    rows (`cdf`); `count`: whole numbers as they are; `cosine`: evenly between -1 and 1."""
    low: float | None = None
    """Least number with a level; the 0.1 % quantile of the training rows if not given."""
    high: float | None = None
    """Largest number with a level; the 99.9 % quantile if not given."""
    unit: float = Field(default=1.0, gt=0)
    """What counts as small for `log1p` and `asinh`, which are linear below it."""
    mode: Literal["robust", "paper"] = "robust"
    """`robust`: missing numbers, numbers out of range and signs have rows of their own; `paper`: digits
    alone, the missing number is `low` and numbers out of range are the nearest in it."""
    negative: Literal["shift", "sign", "clamp"] = "shift"
    """Numbers below 0: levels like others (`shift`), those of the number without its sign and a row for
    the sign (`sign`), or below the range, which begins at 0 (`clamp`)."""
    init_std: float = Field(default=0.05, gt=0)
    """Standard deviation of a field's initial numbers, whatever the digits of its system."""

    @field_validator("bases", "widths", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits(self) -> MNSE:
        problems = [*self._digit_problems(), *self._range_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _digit_problems(self) -> Iterator[str]:
        if not self.bases or len(set(self.bases)) < len(self.bases):
            yield f"bases: each system once, and at least one, got {list(self.bases)}"
        if self.widths is not None and len(self.widths) != len(self.bases):
            yield (
                f"widths: one number of digits for each of the {len(self.bases)} bases, got "
                f"{len(self.widths)}"
            )
        for base, width in zip(self.bases, self.widths or (), strict=False):
            least = digits_needed(self.levels, base)
            if width < least:
                yield (
                    f"widths: {width} digits to the base {base} hold {base**width} of {self.levels} "
                    f"levels; at least {least} are needed"
                )

    def _range_problems(self) -> Iterator[str]:
        low, high = self.low, self.high
        if self.quantiser == "cosine" and (low, high) != (None, None):
            yield "low: 'cosine' goes from -1 to 1; leave low and high out, or use 'linear'"
        if low is not None and high is not None:
            if not low < high:
                yield f"high: must be above low, got {high} and {low}"
            elif self.quantiser == "count" and high - low >= self.levels:
                yield (
                    f"levels: 'count' from {low:g} to {high:g} needs {high - low + 1:g} levels, got "
                    f"{self.levels}"
                )
        if self.quantiser == "count" and low is not None and low != int(low):
            yield f"low: 'count' begins at a whole number, got {low}"
        if self.negative == "sign" and self.mode == "paper":
            yield "negative: 'sign' has its row in mode = 'robust' only"
        if self.negative == "sign" and low not in (None, 0):
            yield f"low: with negative = 'sign' the range begins at 0, got {low}; leave it out"
        if self.negative == "clamp" and low is not None and low < 0:
            yield f"low: with negative = 'clamp' the range begins at 0 or above, got {low}"
        if self.negative != "shift" and self.quantiser == "cosine":
            yield "negative: 'cosine' has levels for numbers below 0; leave it at 'shift'"

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics of the training rows are needed."""
        if self.quantiser == "cosine":
            return False
        low = self.low if self.negative == "shift" else 0
        return self.quantiser == "cdf" or low is None or self.high is None

    @property
    def form(self) -> tuple[object, ...]:
        """What numbers that share their rows have alike."""
        widths = tuple(self.width(base) for base in self.bases)
        return self.kind, self.bases, widths, self.levels, self.mode

    def width(self, base: int) -> int:
        """Digits in one system."""
        if self.widths is not None:
            return self.widths[self.bases.index(base)]
        return digits_needed(self.levels, base)


NumberEncoding = MNSE


def _bare_kind(value: Any) -> Any:
    """A bare kind stands for that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


class NumberFeature(Section):
    """A number that becomes one or several fields of the model."""

    name: str
    """Name of the feature; its fields are called `NAME::b2`, `NAME::b3`, ..."""
    column: str | None = None
    """Column of kind `number` that it is read from; its name if not given."""
    encoding: Annotated[NumberEncoding, BeforeValidator(_bare_kind)] = MNSE()
    """How it is encoded: the name of a kind, or `{kind=..., ...}`."""
    share: str | None = None
    """Numbers that say the same name here share their rows, which makes sense for one unit only."""

    @property
    def source(self) -> str:
        """The column that holds the number."""
        return self.column or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that it is made of."""
        return (self.source,)

    @property
    def rows_of(self) -> str:
        """Name of the rows that it looks up in each of its tables."""
        return self.share or self.name

    @property
    def lookups(self) -> tuple[NumberLookup, ...]:
        """The fields that it becomes by a lookup, in the order of the model's fields."""
        return tuple(
            NumberLookup(f"{self.name}{BASE_MARK}{base}", self.name, f"mnse_b{base}", base)
            for base in self.encoding.bases
        )


@dataclass(frozen=True, slots=True)
class NumberLookup:
    """A field that looks up what a number is encoded as.

    Args:
        name: of the field.
        number: the number feature that it belongs to.
        table_name: the table that it looks up.
        base: the numeral system.
    """

    name: str
    number: str
    table_name: str
    base: int

    @property
    def pooling(self) -> Literal["sum"]:
        """The rows of a number are added up."""
        return "sum"

    @property
    def weights(self) -> None:
        """The rows of a number have no weights."""
        return


MARK = "::"
"""What parts the name of a number from that of one of its fields."""
BASE_MARK = f"{MARK}b"


def digits_needed(levels: int, base: int) -> int:
    """Fewest digits that write 0 to levels - 1; whole numbers, where logarithms would err.

    >>> [digits_needed(1024, base) for base in (2, 3, 10)], digits_needed(125, 5)
    ([10, 7, 4], 3)
    """
    digits, reach = 1, base
    while reach < levels:
        digits, reach = digits + 1, reach * base
    return digits
