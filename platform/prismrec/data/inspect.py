"""What lies in a data set, found in one pass over its row groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.config.recipe import lanes_for
from prismrec.data.schema import Column
from prismrec.data.source import open_data
from prismrec.data.write import Progress

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
MAX_MARKED_IDS = 2**28
"""Above this many ids a column's distinct values are not counted: a byte is held for each."""

Facts = dict[str, Any]


def inspect_data(
    path: str | Path,
    world_size: int | None = None,
    lanes: int = 8,
    progress: Progress | None = None,
) -> Facts:
    """Schema, files, and what every column holds, ready for JSON.

    Memory is one row group and a byte for every known id.

    Args:
        path: a data set, local or any URL the reader takes.
        world_size: ranks that the lanes are shared out to; left out of the answer if not given.
        lanes: as in a recipe's `data.lanes`.
        progress: called after every row group with how many are read and how many there are.

    Returns:
        `name`, `source`, `fingerprint`, `files`, `rows`, `row_groups`, `rows_per_group` (least,
        most), `bytes`, `lanes` and, by name, `columns`: kind, type, nulls and
        `num_ids`, `distinct`, `unknown`, `min`, `max` for ids, `lengths` for lists,
        `rate` for labels, `min`, `max`, `mean`, `std` for numbers, `min`, `max` for times.

    Raises:
        UserError: not a data set, a row group that cannot be decoded, or lanes that cannot be
            shared out.
    """
    shares = _lanes(lanes, world_size)
    source = open_data(str(path))
    columns = source.schema.columns
    seen = {name: _Seen(column) for name, column in columns.items()}
    group = 0
    for file in range(len(source.files)):
        for fragment in source.fragments(file):
            try:
                rows = fragment.to_table(source.arrow(file), columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{source.where(group)}: cannot be decoded ({reason}); write the file again"
                ) from None
            for name, each in seen.items():
                each.update(rows[name])
            group += 1
            if progress is not None:
                progress(group, len(source.group_rows))
    types = {name: str(source.arrow(0).field(name).type) for name in columns}
    return {
        "name": source.schema.name,
        "source": source.schema.source,
        "fingerprint": source.fingerprint,
        "files": len(source.files),
        "rows": source.num_rows,
        "row_groups": len(source.group_rows),
        "rows_per_group": [int(source.group_rows.min()), int(source.group_rows.max())],
        "bytes": sum(file.size for file in source.files),
        "lanes": _rows_of_lanes(source.num_rows, shares),
        "columns": {name: {"type": types[name], **each.facts()} for name, each in seen.items()},
    }


def _lanes(lanes: int, world_size: int | None) -> tuple[int, int | None]:
    if lanes < 1 or (world_size is not None and world_size < 1):
        raise UserError(f"lanes = {lanes}, world size = {world_size}: both must be at least 1")
    if world_size is not None and lanes % world_size:
        works, _ = lanes_for(world_size, lanes, lanes)
        raise UserError(
            f"{lanes} lanes cannot be shared out to {world_size} ranks; {works} lanes work"
        )
    return lanes, world_size


def _rows_of_lanes(rows: int, shares: tuple[int, int | None]) -> Facts:
    """Least and most rows of a lane and, where the world size is known, of a rank's lanes."""
    lanes, world_size = shares
    facts: Facts = {"lanes": lanes, "rows_per_lane": [rows // lanes, -(-rows // lanes)]}
    if world_size is not None:
        longer = rows % lanes
        each = lanes // world_size
        owned = [
            each * (rows // lanes) + min(each, max(0, longer - rank * each))
            for rank in range(world_size)
        ]
        facts |= {"world_size": world_size, "lanes_per_rank": each, "rows_per_rank": owned}
    return facts


class _Part(Protocol):
    def update(self, column: pa.ChunkedArray) -> None: ...

    def facts(self) -> Facts: ...


class _Seen:
    """What is known of one column so far: nulls, and by kind its ids, lengths or moments."""

    def __init__(self, column: Column) -> None:
        self.kind = column.kind
        self.nulls = 0
        self.parts: list[_Part] = []
        if column.kind in ("ids", "numbers"):
            self.parts.append(_Lengths())
        if column.num_ids is not None:
            self.parts.append(_Ids(column.num_ids))
        elif column.kind in ("id", "ids", "time"):
            self.parts.append(_Span())
        if column.kind in ("number", "numbers", "label"):
            self.parts.append(_Moments(is_label=column.kind == "label"))

    def update(self, column: pa.ChunkedArray) -> None:
        self.nulls += column.null_count
        for part in self.parts:
            part.update(column)

    def facts(self) -> Facts:
        facts: Facts = {"kind": self.kind, "nulls": self.nulls}
        for part in self.parts:
            facts |= part.facts()
        return facts


class _Ids:
    """Distinct known ids, and how many values are none of them."""

    def __init__(self, num_ids: int) -> None:
        self.num_ids = num_ids
        self.unknown = 0
        self.least: int | None = None
        self.most: int | None = None
        self._marks = np.zeros(num_ids, bool) if num_ids <= MAX_MARKED_IDS else None

    def update(self, column: pa.ChunkedArray) -> None:
        values = _values(column).to_numpy()
        known = (values >= 0) & (values < self.num_ids)
        self.unknown += int(len(values) - known.sum())
        if len(values):
            low, high = int(values.min()), int(values.max())
            self.least = low if self.least is None else min(self.least, low)
            self.most = high if self.most is None else max(self.most, high)
        if self._marks is not None:
            self._marks[values[known]] = True

    def facts(self) -> Facts:
        return {
            "num_ids": self.num_ids,
            "distinct": None if self._marks is None else int(self._marks.sum()),
            "unknown": self.unknown,
            "min": self.least,
            "max": self.most,
        }


class _Lengths:
    """Exact quantiles of list lengths, from a count of every length."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(1, np.int64)

    def update(self, column: pa.ChunkedArray) -> None:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        counts = np.bincount(lengths, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def facts(self) -> Facts:
        rows = int(self._counts.sum())
        below = np.cumsum(self._counts)
        ranks = [min(rows - 1, int(q * rows)) for q in QUANTILES]
        at = np.searchsorted(below, ranks, side="right")
        lengths: Facts = {f"{q:g}": int(n) for q, n in zip(QUANTILES, at, strict=True)}
        lengths["mean"] = float(self._counts @ np.arange(len(self._counts))) / max(rows, 1)
        lengths["empty_share"] = float(self._counts[0]) / max(rows, 1)
        return {"lengths": lengths}


class _Moments:
    """Mean, spread and ends of the finite values; of a label the share of ones."""

    def __init__(self, is_label: bool) -> None:
        self.is_label = is_label
        self._count = 0
        self._mean = self._squares = 0.0
        self._least, self._most = np.inf, -np.inf

    def update(self, column: pa.ChunkedArray) -> None:
        values = _values(column).cast(pa.float64()).to_numpy()
        values = values[np.isfinite(values)]
        if not len(values):
            return
        # Chan's update: sums of squares of large values would cancel.
        count = self._count + len(values)
        mean = float(values.mean())
        shift = mean - self._mean
        self._squares += float(((values - mean) ** 2).sum())
        self._squares += shift**2 * self._count * len(values) / count
        self._mean += shift * len(values) / count
        self._count = count
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    def facts(self) -> Facts:
        if not self._count:
            return {"rate": None} if self.is_label else {"mean": None, "std": None}
        if self.is_label:
            return {"rate": self._mean}
        return {
            "min": self._least,
            "max": self._most,
            "mean": self._mean,
            "std": float(np.sqrt(self._squares / self._count)),
        }


class _Span:
    """Smallest and largest value."""

    def __init__(self) -> None:
        self._ends: list[int] = []

    def update(self, column: pa.ChunkedArray) -> None:
        values = _values(column).to_numpy()
        if len(values):
            ends = [*self._ends, int(values.min()), int(values.max())]
            self._ends = [min(ends), max(ends)]

    def facts(self) -> Facts:
        return dict(zip(("min", "max"), self._ends or (None, None), strict=True))


def _values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a column, those inside its lists, without nulls."""
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return (pc.list_flatten(column) if is_list else column).drop_null()
