"""Recipe sections of the encodings of numbers: one for every way a number becomes vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prismrec.config.section import Section

MAX_LEVELS = 2**20
"""Most levels of a number; more than a float32 could tell apart would be noise."""
LOG_EDGE = 2.0
"""Up to here a logarithmic bucket is a whole number."""

Scale = Literal["linear", "log1p", "asinh", "cdf"]
Quantiser = Literal["linear", "log1p", "asinh", "cdf", "count", "cosine"]
_CDF_GROUPS = 1024


class Encoding(Section):
    """What every encoding can tell."""

    is_looked_up: ClassVar[bool] = True
    """Whether rows of tables stand for the number; else a module of the model reads it."""

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics of the training rows are needed."""
        return bool(self.shares)

    @property
    def is_magnitude(self) -> bool:
        """Whether these are of the number without its sign."""
        return False

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the training rows whose quantiles are needed, rising."""
        return ()

    @property
    def tables(self) -> Mapping[str, str]:
        """Tables that a number looks up, by what its field in each is called."""
        return {}

    @property
    def form(self) -> tuple[object, ...]:
        """What numbers that share their rows have alike."""
        return ()


class Ranged(Encoding):
    """An encoding on a scale with two ends."""

    low: float | None = None
    """Least number on the scale; the 0.1 % quantile of the training rows if not given."""
    high: float | None = None
    """Largest number on the scale; the 99.9 % quantile if not given."""
    unit: float = Field(default=1.0, gt=0)
    """What counts as small for `log1p` and `asinh`, which are linear below it."""

    @model_validator(mode="after")
    def _range_rises(self) -> Ranged:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"high: must be above low, got {self.high} and {self.low}")
        return self


class MNSE(Ranged):
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
        if self.quantiser == "count":
            if low is not None and low != int(low):
                yield f"low: 'count' begins at a whole number, got {low}"
            if low is not None and high is not None and high - low >= self.levels:
                yield (
                    f"levels: 'count' from {low:g} to {high:g} needs {high - low + 1:g} levels, got "
                    f"{self.levels}"
                )
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
        low = 0 if self.negative == "sign" else self.low
        return self.quantiser == "cdf" or low is None or self.high is None

    @property
    def is_magnitude(self) -> bool:
        """Whether these are of the number without its sign."""
        return self.negative == "sign"

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the training rows whose quantiles are needed, rising."""
        return shares_between(self.levels) if self.quantiser == "cdf" else ()

    @property
    def tables(self) -> Mapping[str, str]:
        """A table of digits for each base."""
        return {f"b{base}": f"mnse_b{base}" for base in self.bases}

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


class LogBucket(Encoding):
    """The whole part of the squared logarithm is a row: `floor(ln(x)^2)` above 2, `floor(x)` below."""

    kind: Literal["log_bucket"]
    buckets: int = Field(default=512, ge=8)
    """Rows; the last takes what is beyond. 512 reach to about 6e9."""
    init_std: float = Field(default=0.05, gt=0)
    """Standard deviation of the initial weights."""

    @property
    def tables(self) -> Mapping[str, str]:
        """The table of logarithmic buckets."""
        return {"log": self.kind}

    @property
    def form(self) -> tuple[object, ...]:
        """What numbers that share their rows have alike."""
        return self.kind, self.buckets


class QuantileBucket(Encoding):
    """The training rows are cut into groups of equal size; each has a row."""

    kind: Literal["quantile_bucket"]
    buckets: int = Field(default=64, ge=2, le=MAX_LEVELS)
    """Groups; fewer where many rows have one number."""
    init_std: float = Field(default=0.05, gt=0)
    """Standard deviation of the initial weights."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the training rows whose quantiles are needed, rising."""
        return shares_between(self.buckets)

    @property
    def tables(self) -> Mapping[str, str]:
        """The table of quantile buckets."""
        return {"quantile": self.kind}

    @property
    def form(self) -> tuple[object, ...]:
        """What numbers that share their rows have alike."""
        return self.kind, self.buckets


class Scaled(Ranged):
    """An encoding by a module of the model, which reads the number on a scale from 0 to 1.

    Numbers out of range are the nearest in it, and a missing one is `low`.
    """

    is_looked_up: ClassVar[bool] = False
    scale: Scale = "linear"
    """Even steps from `low` to `high` (`linear`), of logarithms (`log1p`), of logarithms to both sides
    (`asinh`), or the rank among the training rows (`cdf`)."""

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics of the training rows are needed."""
        return self.scale == "cdf" or self.low is None or self.high is None

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the training rows whose quantiles are needed, rising."""
        return shares_between(_CDF_GROUPS) if self.scale == "cdf" else ()


class ScaledValue(Scaled):
    """The scaled number times a learned vector, plus a learned vector if asked for."""

    kind: Literal["value"]
    bias: bool = False
    """Add a vector of the number's own."""


class AutoDis(Scaled):
    """A learned soft choice among vectors of the number's own.

    Source: Guo et al., "An Embedding Learning Framework for Numerical Features in CTR Prediction",
    KDD 2021.
    """

    kind: Literal["autodis"]
    buckets: int = Field(default=16, ge=1)
    """Vectors to choose among."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides the scores of the choice; near 0 it is a hard one and stops learning."""
    skip: float = Field(default=0.8, ge=0)
    """Weight of the first layer's output beside the second's."""


class PiecewiseLinear(Encoding):
    """How far the number has come through each of the bins between quantiles, times learned vectors.

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning",
    NeurIPS 2022.
    """

    is_looked_up: ClassVar[bool] = False
    kind: Literal["piecewise_linear"]
    bins: int = Field(default=48, ge=1)
    """Bins that hold equally many training rows; fewer where many rows have one number."""
    linear: bool = False
    """Add the number of bins passed times a vector of its own, and begin with all others at 0."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the training rows whose quantiles are needed: both ends too."""
        return (0.0, *shares_between(self.bins), 1.0)


class Periodic(Scaled):
    """Sines and cosines of the scaled number at learned frequencies, and a linear layer with ReLU.

    Source: Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning",
    NeurIPS 2022.
    """

    kind: Literal["periodic"]
    frequencies: int = Field(default=16, ge=1)
    """Number of frequencies."""
    sigma: float = Field(default=1.0, gt=0)
    """Standard deviation of the initial frequencies, in periods over the scale; what matters most."""


NumberEncoding = Annotated[
    MNSE | LogBucket | QuantileBucket | ScaledValue | AutoDis | PiecewiseLinear | Periodic,
    Field(discriminator="kind"),
]


def _bare_kind(value: Any) -> Any:
    """A bare kind stands for that kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


EncodingOptions = Annotated[NumberEncoding, BeforeValidator(_bare_kind)]
""" `"mnse"`, or `{kind = "mnse", levels = 256}`."""


def shares_between(groups: int) -> tuple[float, ...]:
    """Shares that part rows into groups of equal size.

    >>> shares_between(4)
    (0.25, 0.5, 0.75)
    """
    return tuple(group / groups for group in range(1, groups))


def digits_needed(levels: int, base: int) -> int:
    """Fewest digits that write 0 to levels - 1; whole numbers, where logarithms would err.

    >>> [digits_needed(1024, base) for base in (2, 3, 10)], digits_needed(125, 5)
    ([10, 7, 4], 3)
    """
    digits, reach = 1, base
    while reach < levels:
        digits, reach = digits + 1, reach * base
    return digits
