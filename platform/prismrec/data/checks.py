"""What must hold for a whole split before its first batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prismrec.config import UserError
from prismrec.data.columns import LabelColumn
from prismrec.data.filters import RowFilter
from prismrec.data.rows import Ints
from prismrec.data.skipped import Skipped, attempt
from prismrec.data.source import DataSource, Span


def check_labels(
    source: DataSource,
    rows: RowFilter,
    counts: Ints,
    labels: Sequence[LabelColumn],
    skipped: Skipped | None = None,
) -> None:
    """Refuse a split in which some label is null in every row.

    Statistics of the files decide where they can; only row groups of which the filter takes a
    part are read, and only until one label is found.

    Raises:
        UserError: names the label.
    """
    for column in dict.fromkeys(label.column for label in labels):
        if not _has_label(source, (rows, counts), column, skipped):
            raise UserError(
                f"column '{column}': the label is null in all {int(counts.sum())} rows of the "
                "split; drop the task or choose other rows"
            )


def _has_label(
    source: DataSource, split: tuple[RowFilter, Ints], column: str, skipped: Skipped | None
) -> bool:
    rows, counts = split
    unsure: list[int] = []
    for group in np.flatnonzero(counts).tolist():
        nulls = _span(source, group, column).nulls
        if nulls is None or 0 < nulls < source.group_rows[group] != counts[group]:
            unsure.append(group)
        elif nulls < source.group_rows[group]:
            return True
    condition = pc.field(column).is_valid()
    if rows.expression is not None:
        condition = condition & rows.expression
    return any(_count(source, group, condition, skipped) for group in unsure)


def _count(
    source: DataSource, group: int, condition: pc.Expression, skipped: Skipped | None
) -> int:
    file = int(source.group_file[group])
    fragment = source.fragments(file)[source.group_index[group]]
    scanner = fragment.scanner(source.arrow(file), filter=condition)
    return int(attempt(skipped, source, group, scanner.count_rows) or 0)


def _span(source: DataSource, group: int, column: str) -> Span:
    file = source.files[source.group_file[group]]
    if column in file.constants:
        value = file.constants[column]
        number = value if isinstance(value, int) else None
        return Span(int(source.group_rows[group]) if value is None else 0, number, number)
    spans = file.spans.get(column)
    return Span(None, None, None) if spans is None else spans[source.group_index[group]]


def time_order(source: DataSource, counts: Ints, column: str) -> Ints:
    """Row groups that have rows, from the earliest to the latest.

    Raises:
        UserError: two row groups overlap in time.
    """
    groups = np.flatnonzero(counts)
    bounds = np.array([_bounds(source, group, column) for group in groups.tolist()], np.int64)
    order = np.lexsort((groups, bounds[:, 1], bounds[:, 0]))
    groups, bounds = groups[order], bounds[order]
    overlapping = np.flatnonzero(bounds[1:, 0] < bounds[:-1, 1])
    if len(overlapping):
        first, second = groups[overlapping[0]], groups[overlapping[0] + 1]
        raise UserError(
            f"{source.where(first)} and {source.where(second)} overlap in '{column}', and "
            "data.order = 'time' needs rows sorted over all files; write sorted files "
            "(`prismrec data prepare` does)"
        )
    return groups


def _bounds(source: DataSource, group: int, column: str) -> tuple[int, int]:
    span = _span(source, group, column)
    if span.low is not None and span.high is not None:
        return span.low, span.high
    path = source.file_path(int(source.group_file[group]))
    with pq.ParquetFile(path, filesystem=source.filesystem) as file:
        times = file.read_row_group(int(source.group_index[group]), columns=[column])
    bounds = pc.min_max(times.column(column)).as_py()
    if bounds["min"] is None:
        raise UserError(
            f"{source.where(group)}: column '{column}' has no time at all, which data.order = "
            "'time' cannot place; fill it or filter these rows out"
        )
    return bounds["min"], bounds["max"]
