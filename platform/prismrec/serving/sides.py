"""The two sides of a request: what holds for all its rows, as of a user, and what each row has itself.

The side that all rows share is read, encoded and looked up once. What a field's vectors are does not
change by that, so every model can be served so.

Notation: B rows of a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torch import Tensor

from prismrec.config import UserError
from prismrec.embeddings.jagged import SetSequence
from prismrec.serving.tables import FeatureRows, TableLookup


@dataclass(frozen=True, slots=True)
class Sides:
    """The columns of a request.

    Args:
        rows: B.
        each: columns with a value for each row, by name.
        shared: columns with one value that holds for all rows, by name.
    """

    rows: int
    each: Mapping[str, pa.Array]
    shared: Mapping[str, pa.Array] = field(default_factory=dict)

    @classmethod
    def checked(cls, each: Mapping[str, pa.Array], shared: Mapping[str, pa.Array]) -> Sides:
        """The sides of a request whose columns are of the right types, and each side's of one length.

        Raises:
            UserError: a shared column holds another number of values than one.
        """
        lengths = {len(array) for array in shared.values()}
        if lengths - {1}:
            raise UserError(
                f"shared columns hold one value each for all rows, not {max(lengths)}; give values "
                "of single rows with the other columns"
            )
        return cls(len(next(iter(each.values()))) if each else len(lengths), each, shared)

    def of(self, names: Iterable[str]) -> dict[str, pa.Array]:
        """Columns of one length: of one row where all of them are shared, otherwise of B rows."""
        wanted = list(names)
        if wanted and all(name in self.shared for name in wanted):
            return {name: self.shared[name] for name in wanted}
        return {name: self.whole(name) for name in wanted}

    def whole(self, name: str) -> pa.Array:
        """A column with a value for each row."""
        if name in self.each:
            return self.each[name]
        return self.shared[name].take(pa.array([0] * self.rows, pa.int64()))


def look_up(lookup: TableLookup, features: Sequence[FeatureRows], rows: int) -> list[Tensor]:
    """Pooled vectors (B, N_m, d_m) of each set.

    Args:
        lookup: the tables.
        features: in the order of the fields, each with B bags, or with one that all rows share.
        rows: B.
    """
    is_shared = [len(each.lengths) != rows for each in features]
    if not any(is_shared):
        return lookup(features)
    # A bag without ids gives zeros, so each lookup leaves the other one's fields alone.
    once = [each if one else _empty(1) for each, one in zip(features, is_shared, strict=True)]
    vectors = lookup(once)
    if all(is_shared):
        return [each.expand(rows, -1, -1) for each in vectors]
    own = [_empty(rows) if one else each for each, one in zip(features, is_shared, strict=True)]
    return [mine + ours for mine, ours in zip(lookup(own), vectors, strict=True)]


def repeated(sequence: SetSequence, rows: int) -> SetSequence:
    """The sequence of one row for each of B rows."""
    if len(sequence.offsets) - 1 == rows:
        return sequence
    count = len(sequence.positions)
    intervals = sequence.intervals
    return SetSequence(
        offsets=torch.arange(rows + 1) * count,
        positions=sequence.positions.repeat(rows),
        intervals=None if intervals is None else intervals.repeat(rows),
        behaviours=[each.repeat(rows, 1) for each in sequence.behaviours],
    )


def _empty(rows: int) -> FeatureRows:
    return FeatureRows(
        torch.zeros(0, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), None
    )
