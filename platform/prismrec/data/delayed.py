"""What a stream shows of conversions that come late: when every row is emitted, and with which label.

A log of impressions with the times of their conversions becomes the rows that a joiner would have emitted
by each moment: at once, after a waiting window, when a late conversion comes, when nothing can come any
more. It is a function of the log, so that any rule can be replayed from it and nothing is emitted twice.

Notation: n impressions, t their times, h seconds to the conversion (none: infinite), e the waiting window,
A the attribution window, within which a conversion counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.config import UserError, nearest
from prismrec.data.lookup import filtered_tables
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import DataSource, open_data
from prismrec.data.write import write_table

RULES: dict[str, str] = {
    "oracle": "at once, with the final label: what nobody can know yet",
    "wait": "after the waiting window, with what came in it",
    "copies": "at once as a negative, and again as a positive when it converts (FNW, FNC)",
    "late_copies": "after the waiting window, and again as a positive when it converts later (ES-DFM)",
    "real_negatives": "after the waiting window, and once more with the final label (DEFER)",
}
"""When rows are emitted, by the name of the rule."""

FIRST, LATE, MATURED = "first", "late_positive", "matured"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The windows of a stream of conversions, in the unit of the time column.

    Args:
        wait: e, at least 0.
        attribution: A, longer than `wait`.
        until: emissions after this time are left out; None keeps all.
    """

    wait: int
    attribution: int
    until: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.wait < self.attribution:
            raise UserError(
                f"--wait {self.wait}: from 0 to less than --attribution {self.attribution}, after which "
                "no conversion counts; choose a shorter wait"
            )


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Columns of a log of impressions.

    Args:
        time: when the row happened, of kind `time`.
        delay: time from there to the conversion, null where there is none.
        label: name of the label that is made.
    """

    time: str
    delay: str
    label: str


@dataclass(frozen=True, slots=True)
class _Clicks:
    """The log in numbers: (n,) each."""

    time: Ints
    delay: Ints
    converts: Bools
    is_late: Bools


@dataclass(frozen=True, slots=True)
class _Part:
    """Emissions of one kind.

    Args:
        rows: of the log.
        delay: from each row's time to its emission.
        label: of each, -1 for none.
        kind: of all.
        is_mature: whether the heads that watch the delays learn from them.
    """

    rows: Ints
    delay: Ints
    label: NDArray[np.int8]
    kind: str
    is_mature: bool = False


def emissions(log: pa.Table, rule: str, columns: LogColumns, windows: Waiting) -> pa.Table:
    """The rows of a stream, in the order in which they are emitted.

    Every row of the log is there as often as the rule says, with all its columns as they were. The time
    column is when it is emitted. Added are the label; `event_time`, when the row happened; `emission`: `first`,
    `late_positive` or `matured`; and two labels that train the heads which watch the delays, on rows that
    nothing can happen to any more: `late`, whether the conversion came after the waiting window,
    and `real_negative`, whether a row that had none in the window has none at all (null for rows that had).
    Under `real_negatives`, `late` is null where there is no conversion.

    Args:
        log: the impressions, each once; conversions later than `attribution` do not count.
        rule: one of `RULES`.
        columns: of the log.
        windows: how long to wait.

    Raises:
        UserError: there is no such rule or column, or a time or delay is missing or negative.
    """
    if rule not in RULES:
        raise UserError(f"--rule: unknown rule '{rule}'; {nearest(rule, RULES)}")
    clicks = _clicks(log, columns, windows)
    parts = _RULES[rule](clicks, windows)
    rows = np.concatenate([part.rows for part in parts])
    emitted = clicks.time[rows] + np.concatenate([part.delay for part in parts])
    label = np.concatenate([part.label for part in parts])
    kind = np.repeat([part.kind for part in parts], [len(part.rows) for part in parts])
    mature = np.repeat([part.is_mature for part in parts], [len(part.rows) for part in parts])
    order = np.lexsort((rows, emitted))
    if windows.until is not None:
        order = order[emitted[order] <= windows.until]
    rows, emitted, label, mature = rows[order], emitted[order], label[order], mature[order]
    table = log.take(pa.array(rows))
    late = clicks.is_late[rows]
    knows_late = mature & (clicks.converts[rows] if rule == "real_negatives" else True)
    waited = mature & ~(clicks.converts[rows] & ~late)
    added = {
        columns.time: pa.array(emitted),
        columns.label: _label(label, label >= 0),
        "event_time": pa.array(clicks.time[rows]),
        "emission": pa.array(kind[order]),
        "late": _label(late, knows_late),
        "real_negative": _label(~clicks.converts[rows], waited),
    }
    for name, values in added.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, values) if at >= 0 else table.append_column(name, values)
    return table


def emission_schema(schema: DataSchema, columns: LogColumns) -> DataSchema:
    """The schema of `emissions` over a log of this schema."""
    added = {
        columns.label: Column(kind="label", description="as far as it was known at the emission"),
        "event_time": Column(kind="other", description="when the row happened"),
        "emission": Column(kind="other", description=f"{FIRST}, {LATE} or {MATURED}"),
        "late": Column(kind="label", description="it converted after the waiting window"),
        "real_negative": Column(
            kind="label", description="it never converted, of rows that had not in the window"
        ),
    }
    return schema.model_copy(update={"columns": schema.columns | added})


def write_emissions(
    log: str,
    out: Path,
    rule: str,
    how: tuple[LogColumns, Waiting],
    joined: tuple[str, str] | None = None,
) -> int:
    """Write the emissions of a data set as another one, in their order; the log is held in memory.

    Args:
        log: data set of impressions.
        out: directory to make.
        rule: one of `RULES`.
        how: columns and windows.
        joined: data set of conversions and the column that joins both; the delays are in the log if not
            given.

    Returns:
        Rows written.

    Raises:
        UserError: see `emissions`, `delays_of` and `filtered_tables`, or something lies at `out`
            already.
    """
    columns, windows = how
    source = open_data(log)
    table = _whole(source)
    schema = source.schema
    if joined is not None:
        path, key = joined
        table = delays_of(table, _whole(open_data(path)), key, columns.time, columns.delay)
        added = {columns.delay: Column(kind="other", description="time to the first conversion")}
        schema = schema.model_copy(update={"columns": schema.columns | added})
    schema.column(columns.time, ("time",), "--time")
    rows = emissions(table, rule, columns, windows)
    write_table(out, rows, emission_schema(schema, columns))
    return rows.num_rows


def _whole(source: DataSource) -> pa.Table:
    parts = filtered_tables(source, (), list(source.schema.columns), "rows")
    return pa.concat_tables(parts, promote_options="permissive")


def delays_of(
    impressions: pa.Table, conversions: pa.Table, key: str, time: str, name: str
) -> pa.Table:
    """The impressions with the time from each to its first conversion, null where it has none.

    Args:
        impressions: each key once.
        conversions: any number for a key; those before their impression do not count.
        key: column of both that says what belongs together.
        time: column of both.
        name: of the column that is added.

    Raises:
        UserError: a key is there twice among the impressions.
    """
    if pc.count_distinct(impressions[key]).as_py() != impressions.num_rows:
        raise UserError(f"column '{key}': names several impressions; give each a key of its own")
    order = pa.array(np.arange(impressions.num_rows))
    shown = impressions.select([key, time]).append_column("__row", order)
    happened = conversions.select([key, time]).rename_columns([key, "__converted"])
    pairs = happened.join(shown, key, join_type="inner")
    pairs = pairs.append_column("__delay", pc.subtract(pairs["__converted"], pairs[time]))
    pairs = pairs.filter(pc.greater_equal(pairs["__delay"], 0))
    first = pairs.group_by("__row").aggregate([("__delay", "min")])
    delay = np.full(impressions.num_rows, -1, np.int64)
    delay[first["__row"].to_numpy()] = first["__delay_min"].to_numpy()
    return impressions.append_column(name, pa.array(delay, mask=delay < 0))


def _clicks(log: pa.Table, columns: LogColumns, windows: Waiting) -> _Clicks:
    for name in (columns.time, columns.delay):
        if name not in log.column_names:
            raise UserError(f"column '{name}': not in the log; {nearest(name, log.column_names)}")
    if log[columns.time].null_count:
        raise UserError(
            f"column '{columns.time}': has no time in some rows; fill it or leave them out"
        )
    delay = log[columns.delay].cast(pa.int64())
    converts = pc.is_valid(delay).to_numpy()
    h = pc.fill_null(delay, 0).to_numpy()
    if (h < 0).any():
        raise UserError(
            f"column '{columns.delay}': negative delays; a conversion comes after its row"
        )
    converts = converts & (h <= windows.attribution)
    return _Clicks(
        log[columns.time].cast(pa.int64()).to_numpy(), h, converts, converts & (h > windows.wait)
    )


def _oracle(clicks: _Clicks, windows: Waiting) -> list[_Part]:
    every = np.arange(len(clicks.time))
    return [_Part(every, np.zeros_like(every), clicks.converts.astype(np.int8), FIRST)]


def _wait(clicks: _Clicks, windows: Waiting) -> list[_Part]:
    every = np.arange(len(clicks.time))
    in_time = clicks.converts & ~clicks.is_late
    return [_Part(every, np.full_like(every, windows.wait), in_time.astype(np.int8), FIRST)]


def _copies(clicks: _Clicks, windows: Waiting) -> list[_Part]:
    every = np.arange(len(clicks.time))
    first = _Part(every, np.zeros_like(every), np.zeros(len(every), np.int8), FIRST)
    return [first, _positives(clicks, clicks.converts)]


def _late_copies(clicks: _Clicks, windows: Waiting) -> list[_Part]:
    every = np.arange(len(clicks.time))
    again = _positives(clicks, clicks.is_late)
    return [*_wait(clicks, windows), again, _mature(every, np.full(len(every), -1), windows)]


def _real_negatives(clicks: _Clicks, windows: Waiting) -> list[_Part]:
    late, others = np.flatnonzero(clicks.is_late), np.flatnonzero(~clicks.is_late)
    return [
        *_wait(clicks, windows),
        _positives(clicks, clicks.is_late),
        _mature(others, clicks.converts[others], windows),
        _mature(late, np.full(len(late), -1), windows),
    ]


def _positives(clicks: _Clicks, which: Bools) -> _Part:
    """Some rows as positives, when they convert."""
    rows = np.flatnonzero(which)
    return _Part(rows, clicks.delay[rows], np.ones(len(rows), np.int8), LATE)


def _mature(rows: Ints, label: NDArray, windows: Waiting) -> _Part:
    """Some rows when nothing can happen to them any more."""
    delay = np.full(len(rows), windows.attribution)
    return _Part(rows, delay, label.astype(np.int8), MATURED, is_mature=True)


def _label(values: NDArray, is_known: Bools) -> pa.Array:
    return pa.array(values.astype(np.int8), mask=~is_known)


_RULES: dict[str, Callable[[_Clicks, Waiting], list[_Part]]] = {
    "oracle": _oracle,
    "wait": _wait,
    "copies": _copies,
    "late_copies": _late_copies,
    "real_negatives": _real_negatives,
}
