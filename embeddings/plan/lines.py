"""The plan as JSON-able lines, one for each physical table: what runs keep and ranks send each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismrec.embeddings.collection import PhysicalTable
from prismrec.embeddings.memory import TableBytes, block_bytes
from prismrec.embeddings.plan.expand import Strip, TablePlace, even_rows

Line = dict[str, Any]
"""`table`, `sets`, `layout`, `kind`, `kernel`, `cache_load_factor`, `rows`, `width`, `optimizer`,
`data_type`; `strips`, the first column, columns, first rank and number of ranks of each; over all
ranks `weight_bytes` and `state_bytes`. Of a plan that was searched for also `buffer_bytes` over all
ranks, `milliseconds` on the rank that takes longest, and `why`."""

_PREFIX = "t_"


def line_of(place: TablePlace, physical: PhysicalTable) -> Line:
    """One table's place as a line.

    Args:
        place: where it goes.
        physical: what it is.
    """
    form = physical.form
    line: Line = {
        "table": place.name.removeprefix(_PREFIX),
        "sets": list(physical.slices),
        "layout": physical.table.layout,
        "kind": place.kind,
        "kernel": place.kernel,
        "cache_load_factor": place.cache_load_factor,
        "rows": place.rows,
        "width": physical.width,
        "optimizer": form.optimizer.name,
        "data_type": form.data_type,
        "strips": [list(strip) for strip in place.strips],
    }
    held = [
        _block(line, rows, strip.cols).times(count)
        for strip in place.strips
        for _, count, rows in _runs(place.kind, place.rows, strip.ranks)
    ]
    total = sum(held, TableBytes())
    return line | {"weight_bytes": total.weights, "state_bytes": total.state}


def place_of(line: Line) -> TablePlace:
    """The place that a line tells of."""
    return TablePlace(
        name=_PREFIX + line["table"],
        kind=line["kind"],
        kernel=line["kernel"],
        rows=line["rows"],
        strips=tuple(Strip(*strip) for strip in line["strips"]),
        cache_load_factor=line["cache_load_factor"],
    )


def predicted_bytes(lines: Sequence[Line], world_size: int) -> list[TableBytes]:
    """What each rank's part of the tables should take, by rank.

    Args:
        lines: the plan.
        world_size: number of ranks.
    """
    weights, state = np.zeros(world_size, np.int64), np.zeros(world_size, np.int64)
    for line in lines:
        for _, cols, first, ranks in line["strips"]:
            for start, count, rows in _runs(line["kind"], line["rows"], ranks):
                held = slice(first + start, first + start + count)
                need = _block(line, rows, cols)
                weights[held] += need.weights
                state[held] += need.state
    return [TableBytes(int(w), int(s)) for w, s in zip(weights, state, strict=True)]


def predicted_beside(
    lines: Sequence[Line], world_size: int, bytes_per_row: Mapping[str, int]
) -> list[int]:
    """What each rank should keep besides weights and optimizer state, by rank.

    Args:
        lines: the plan.
        world_size: number of ranks.
        bytes_per_row: by physical name, what a row of a shard takes.
    """
    beside = np.zeros(world_size, np.int64)
    for line in lines:
        for _, _, first, ranks in line["strips"]:
            for start, count, rows in _runs(line["kind"], line["rows"], ranks):
                held = slice(first + start, first + start + count)
                beside[held] += rows * bytes_per_row[_PREFIX + line["table"]]
    return [int(each) for each in beside]


def _block(line: Line, rows: int, cols: int) -> TableBytes:
    return block_bytes(line["optimizer"], line["data_type"], rows, cols)


def _runs(kind: str, rows: int, ranks: int) -> list[tuple[int, int, int]]:
    """First rank, number of ranks and rows of each run of ranks that hold as many rows of a strip."""
    if kind == "data_parallel":
        return [(0, ranks, rows)]
    runs: list[tuple[int, int, int]] = []
    for rank, (_, held) in enumerate(even_rows(rows, ranks)):
        if runs and runs[-1][2] == held:
            first, count, _ = runs[-1]
            runs[-1] = (first, count + 1, held)
        else:
            runs.append((rank, 1, held))
    return runs
