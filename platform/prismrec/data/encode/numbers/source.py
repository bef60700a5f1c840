"""Where a number of a recipe comes from: columns of some rows in, numbers in float64 out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prismrec.data.encode.numbers.quantise import Doubles


class NumberSource(Protocol):
    """What every source can do.

    Attributes:
        columns: columns that are read.
        text: the source in words.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """See the attributes."""

    @property
    def text(self) -> str:
        """See the attributes."""

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Doubles:
        """(n,) numbers of n rows, NaN where one is missing, in memory of their own."""


def doubles(array: pa.Array) -> Doubles:
    """float64 of memory of their own, with NaN for null; whole numbers are exact up to 2^53."""
    if array.type != pa.float64():
        array = array.cast(pa.float64(), safe=False)
    if array.null_count:
        array = pc.fill_null(array, float("nan"))
    return np.array(array.to_numpy(zero_copy_only=False))


@dataclass(frozen=True, slots=True)
class ColumnSource:
    """A column of kind `number`.

    Args:
        column: its name.
    """

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""
        return (self.column,)

    @property
    def text(self) -> str:
        """The column in words."""
        return f"column '{self.column}'"

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Doubles:
        """(n,) numbers of n rows, NaN where one is missing."""
        return doubles(arrays[self.column])
