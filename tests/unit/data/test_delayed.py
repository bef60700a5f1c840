"""When rows of a stream are emitted, by hand: four clicks, e = 10, A = 100."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prismrec.config import UserError
from prismrec.data.delayed import (
    LogColumns,
    Waiting,
    delays_of,
    emission_schema,
    emissions,
    write_emissions,
)
from prismrec.data.schema import Column, DataSchema
from prismrec.data.source import open_data
from prismrec.data.write import write_table
from tests.helpers.damage import damage

COLUMNS = LogColumns("at", "delay", "buy")
WINDOWS = Waiting(10, 100)
LOG = pa.table(
    {
        "click": ["early", "late", "never", "too_late"],
        "at": [0, 1, 2, 3],
        "delay": pa.array([10, 11, None, 101], pa.int64()),
    }
)


def shown(rule: str, log: pa.Table = LOG, windows: Waiting = WINDOWS) -> list[tuple[Any, ...]]:
    """Time, click and label of every emission."""
    table = emissions(log, rule, COLUMNS, windows)
    return list(zip(*(table[name].to_pylist() for name in ("at", "click", "buy")), strict=True))


def test_oracle() -> None:
    assert shown("oracle") == [(0, "early", 1), (1, "late", 1), (2, "never", 0), (3, "too_late", 0)]


def test_waiting_loses_what_comes_later() -> None:
    assert shown("wait") == [
        (10, "early", 1),
        (11, "late", 0),
        (12, "never", 0),
        (13, "too_late", 0),
    ]


def test_copies_are_negatives_at_once_and_positives_when_they_convert() -> None:
    first = [(0, "early", 0), (1, "late", 0), (2, "never", 0), (3, "too_late", 0)]
    assert shown("copies") == [*first, (10, "early", 1), (12, "late", 1)]


def test_late_copies_and_the_labels_of_the_heads() -> None:
    table = emissions(LOG, "late_copies", COLUMNS, WINDOWS)
    names = ("at", "click", "buy", "emission", "late", "real_negative")
    assert list(zip(*(table[name].to_pylist() for name in names), strict=True)) == [
        (10, "early", 1, "first", None, None),
        (11, "late", 0, "first", None, None),
        (12, "late", 1, "late_positive", None, None),
        (12, "never", 0, "first", None, None),
        (13, "too_late", 0, "first", None, None),
        (100, "early", None, "matured", 0, None),
        (101, "late", None, "matured", 1, 0),
        (102, "never", None, "matured", 0, 1),
        (103, "too_late", None, "matured", 0, 1),
    ]
    assert table["event_time"].to_pylist()[-4:] == [0, 1, 2, 3]


def test_real_negatives_come_once_more_with_their_final_label() -> None:
    table = emissions(LOG, "real_negatives", COLUMNS, WINDOWS)
    names = ("at", "click", "buy", "emission", "late")
    assert list(zip(*(table[name].to_pylist() for name in names), strict=True))[2:] == [
        (12, "late", 1, "late_positive", None),
        (12, "never", 0, "first", None),
        (13, "too_late", 0, "first", None),
        (100, "early", 1, "matured", 0),
        (101, "late", None, "matured", 1),
        (102, "never", 0, "matured", None),
        (103, "too_late", 0, "matured", None),
    ]


def test_what_has_not_been_emitted_yet_is_left_out() -> None:
    assert len(shown("real_negatives", windows=Waiting(10, 100, until=12))) == 4


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        ("oracle", lambda p, r: p),
        ("wait", lambda p, r: p * (1 - r)),
        ("copies", lambda p, r: p / (1 + p)),
        ("late_copies", lambda p, r: p / (1 + p * r)),
        ("real_negatives", lambda p, r: p - p * r / 2),
    ],
)
@pytest.mark.parametrize(("p", "r"), [(0.2, 0.25), (0.05, 0.8)])
def test_the_share_of_positives_that_each_rule_shows(
    rule: str, share: Any, p: float, r: float
) -> None:
    """200,000 clicks drawn with p and r; within three standard errors of what the rule says."""
    rng, n = np.random.default_rng(3), 200_000
    converts, late = rng.random(n) < p, rng.random(n) < r
    delay = np.where(late, rng.integers(11, 101, n), rng.integers(0, 11, n))
    log = pa.table({"click": range(n), "at": range(n), "delay": pa.array(delay, mask=~converts)})
    labels = emissions(log, rule, COLUMNS, WINDOWS)["buy"].drop_null().to_numpy()
    expected = share(p, r)
    assert labels.mean() == pytest.approx(expected, abs=3 * (expected * (1 - expected) / n) ** 0.5)


def test_the_first_conversion_of_each_impression() -> None:
    impressions = pa.table({"key": [7, 8, 9], "at": [100, 200, 300], "x": ["a", "b", "c"]})
    conversions = pa.table({"key": [8, 7, 8, 9, 5], "at": [260, 100, 230, 299, 1]})
    log = delays_of(impressions, conversions, "key", "at", "delay")
    assert log["delay"].to_pylist() == [0, 30, None]  # 9 converted before it was shown
    assert log["x"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(UserError, match="column 'key': names several impressions"):
        delays_of(pa.concat_tables([impressions] * 2), conversions, "key", "at", "delay")


def test_the_schema_of_what_is_shown() -> None:
    schema = DataSchema(
        name="log",
        columns={
            "click": Column(kind="other"),
            "at": Column(kind="time"),
            "delay": Column(kind="other"),
        },
    )
    made = emission_schema(schema, COLUMNS)
    table = emissions(LOG, "late_copies", COLUMNS, WINDOWS)
    assert list(made.columns) == table.column_names
    made.check_arrow(table.schema, list(made.columns), "the stream")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: shown("late_copy"), r"--rule: unknown rule 'late_copy'; .*late_copies"),
        (lambda: Waiting(100, 100), r"--wait 100: from 0 to less than --attribution 100"),
        (
            lambda: shown("wait", LOG.set_column(2, "delay", [[1, 2, -3, 4]])),
            "column 'delay': negative delays",
        ),
        (lambda: shown("wait", LOG.drop_columns(["delay"])), "column 'delay': not in the log"),
        (
            lambda: shown("wait", LOG.set_column(1, "at", pa.array([1, 2, None, 4]))),
            "column 'at': has no time in some rows",
        ),
    ],
)
def test_what_a_log_lacks(make: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make()


def test_a_data_set_and_its_conversions_become_a_stream(tmp_path: Path) -> None:
    log, bought = tmp_path / "log", tmp_path / "bought"
    time, key = Column(kind="time"), Column(kind="other")
    shown_rows = LOG.select(["click", "at"])
    write_table(log, shown_rows, DataSchema(name="log", columns={"click": key, "at": time}))
    rows = pa.table({"click": ["late", "early", "late"], "at": [40, 10, 12]})
    write_table(bought, rows, DataSchema(name="bought", columns={"click": key, "at": time}))
    out = tmp_path / "out"
    count = write_emissions(
        str(log), out, "late_copies", (COLUMNS, WINDOWS), (str(bought), "click")
    )
    source = open_data(out)
    assert count == source.num_rows == 4 + 1 + 4
    table = pq.read_table(out / "part-00000.parquet")
    assert table["at"].to_pylist() == sorted(table["at"].to_pylist())
    assert table.filter(pc.equal(table["emission"], "late_positive"))["click"].to_pylist() == [
        "late"
    ]
    with pytest.raises(UserError, match="a data set lies here already"):
        write_emissions(str(log), out, "wait", (COLUMNS, WINDOWS), (str(bought), "click"))
    damage(log / "part-00000.parquet", 0, "at")
    with pytest.raises(UserError, match=r"part-00000\.parquet: row group 0: cannot be decoded"):
        write_emissions(str(log), tmp_path / "no", "wait", (COLUMNS, WINDOWS))
