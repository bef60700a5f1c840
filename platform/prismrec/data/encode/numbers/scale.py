"""From numbers to what a module of the model reads: a place on a scale, one float32 for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prismrec.data.encode.numbers.quantise import Doubles, Levels
from prismrec.data.encode.numbers.source import NumberSource
from prismrec.data.rows import Floats


@dataclass(frozen=True, slots=True)
class Share:
    """Where numbers lie between the ends of a range, from 0 to 1; those outside are moved to the ends.

    Args:
        levels: the range and its scale.
    """

    levels: Levels

    def __call__(self, values: Doubles) -> Doubles:
        """Places of numbers that are not NaN."""
        return self.levels.share(np.clip(values, self.levels.low, self.levels.high))


@dataclass(frozen=True, slots=True)
class Position:
    """How many of the bins between edges numbers have passed, parts of a bin included.

    Component m of the piecewise-linear encoding with these edges is then the position less m, cut to
    0 and 1, but for the outer sides of the first and the last bin. Numbers beyond the edges go on as
    in the outer bins, for one bin at most. Where edges coincided, so that there are fewer bins than the
    model has components, they stop at the last edge.

    Args:
        edges: (M + 1,) rising, each once, at least two.
        bins: components of the model, at least M.
    """

    edges: Doubles
    bins: int

    def __call__(self, values: Doubles) -> Doubles:
        """Positions of numbers that are not NaN."""
        last = len(self.edges) - 1
        at = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, last - 1)
        left, right = self.edges[at], self.edges[at + 1]
        most = last + 1 if last == self.bins else last
        # An infinite number divided by the width of a bin is infinite still.
        return np.clip(at + (values - left) / (right - left), -1.0, most)


@dataclass(frozen=True, slots=True)
class Scaler:
    """A number of a recipe, from columns to a numeric column of the batch.

    Args:
        name: of the number.
        source: where it comes from.
        place: how it is scaled.
    """

    name: str
    source: NumberSource
    place: Callable[[Doubles], Doubles]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""
        return self.source.columns

    def __call__(self, arrays: Mapping[str, pa.Array]) -> Floats:
        """(n,) places of n rows of its columns, NaN where the number is missing."""
        values = self.source(arrays)
        missing = np.isnan(values)
        places = self.place(np.where(missing, 0.0, values)).astype(np.float32)
        places[missing] = np.nan
        return places
