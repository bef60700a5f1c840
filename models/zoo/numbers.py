"""Numbers of a recipe that modules of the model read, as plain specifications."""

from __future__ import annotations

from collections.abc import Iterable

from prismrec.config.encodings import AutoDis, Encoding, Periodic, PiecewiseLinear, ScaledValue
from prismrec.config.numbers import NumberFeature
from prismrec.models.numeric import (
    AutoDisSpec,
    NumericSpec,
    PeriodicSpec,
    PiecewiseSpec,
    ValueSpec,
)


def numeric_specs(numbers: Iterable[NumberFeature]) -> tuple[NumericSpec, ...]:
    """The encodings of the numbers that are not looked up, in the order of the recipe."""
    return tuple(_spec(each.encoding) for each in numbers if not each.encoding.is_looked_up)


def _spec(encoding: Encoding) -> NumericSpec:
    if isinstance(encoding, AutoDis):
        return AutoDisSpec(encoding.buckets, encoding.temperature, encoding.skip)
    if isinstance(encoding, PiecewiseLinear):
        return PiecewiseSpec(encoding.bins, encoding.linear)
    if isinstance(encoding, Periodic):
        return PeriodicSpec(encoding.frequencies, encoding.sigma)
    assert isinstance(encoding, ScaledValue)
    return ValueSpec(encoding.bias)
