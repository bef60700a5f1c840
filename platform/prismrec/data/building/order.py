"""The order of the rows of a data set that is built, and where it is cut into row groups.

Rows are ordered by time and then by where they stood; without a time by the latter alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prismrec.config import UserError
from prismrec.data.building.plan import TimeSplits
from prismrec.data.rows import Ints

SAMPLE_ROWS = 2**18
"""Rows whose places decide where the order is cut; of fewer rows, all."""
_SNAP = 0.08
"""Share of a row group that a cut may move to meet the edge of a row group of the source: with two cuts
that move, two thirds to four thirds of the size wanted are still kept."""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Keys:
    """Places of rows in the order.

    Args:
        times: time of each row, 0 where there is none.
        rows: number of each row in the source.
    """

    times: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def sorted(self) -> Keys:
        """The same places, rising."""
        order = np.lexsort((self.rows, self.times))
        return Keys(self.times[order], self.rows[order])

    def take(self, where: Ints | slice) -> Keys:
        """Some of the places."""
        return Keys(self.times[where], self.rows[where])

    def at_or_after(self, bounds: Keys) -> Ints:
        """For each place, how many of some rising bounds are not behind it."""
        low = np.searchsorted(bounds.times, self.times, "left")
        found = np.searchsorted(bounds.times, self.times, "right")
        for time in np.unique(self.times[low != found]):
            here = self.times == time
            first, end = np.searchsorted(bounds.times, [time, time + 1])
            inside = np.searchsorted(bounds.rows[first:end], self.rows[here], "right")
            found[here] = first + inside
        return found

    @staticmethod
    def joined(parts: Sequence[Keys]) -> Keys:
        """The places of several parts."""
        return Keys(
            np.concatenate([each.times for each in parts]),
            np.concatenate([each.rows for each in parts]),
        )


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """What a row group of the source holds of the order.

    Args:
        num_rows: its rows.
        ends: places of its first and its last row in the order, two of them; none if it is empty.
        sample: places of some of its rows, evenly spread.
        before: how many of its rows are before each of some times.
    """

    num_rows: int
    ends: Keys
    sample: Keys
    before: Ints


def group_order(keys: Keys, first: int, stride: int, times: Sequence[int] = ()) -> GroupOrder:
    """What a row group holds.

    Args:
        keys: places of its rows.
        first: rows of the row groups before it.
        stride: one of so many rows goes into the sample.
        times: at which splits start, if they start at given times.
    """
    rising = keys.sorted()
    ends = rising.take(np.array([0, -1])) if len(keys) else rising
    start = (stride // 2 - first) % stride
    sample = rising.take(slice(start, None, stride))
    return GroupOrder(len(keys), ends, sample, np.searchsorted(rising.times, times))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows that become one file.

    Args:
        split: `train`, `valid` or `test`; None if there are no splits.
        number: of the file within its split.
    """

    split: str | None
    number: int

    @property
    def file(self) -> str:
        """Path of the file below the data set."""
        name = f"part-{self.number:05d}.parquet"
        return name if self.split is None else f"split={self.split}/{name}"


@dataclass(frozen=True, slots=True)
class Cuts:
    """How the order is cut.

    Args:
        buckets: in the order of their rows.
        bounds: first place of every bucket but the first.
        train_until: time of the first row that is not for training; None if all are.
    """

    buckets: tuple[Bucket, ...]
    bounds: Keys
    train_until: int | None

    def __call__(self, keys: Keys) -> Ints:
        """(n,) number of each row's bucket."""
        return keys.at_or_after(self.bounds)


def cut(groups: Sequence[GroupOrder], splits: TimeSplits | None, rows_per_bucket: int) -> Cuts:
    """Cut the order into splits, and these into buckets of nearly equal numbers of rows.

    Args:
        groups: all row groups of the source; they know what is before the times of the splits.
        splits: parts by time, or None.
        rows_per_bucket: rows that a bucket should have.

    Raises:
        UserError: a split would have no row.
    """
    sample = Keys.joined([each.sample for each in groups]).sorted()
    edges = _Edges.of(groups, sample)
    total = sum(each.num_rows for each in groups)
    scale = total / max(len(sample), 1)
    parts = _parts(groups, sample, splits)
    buckets: list[Bucket] = []
    bounds: list[tuple[int, int]] = []
    for name, (first, end), time in parts:
        if buckets:
            bounds.append((time, -1))
        count = max(1, round((end - first) * scale / rows_per_bucket))
        for number in range(count):
            buckets.append(Bucket(name, number))
            if number:
                place = first + (end - first) * number // count
                bounds.append(edges.near(place, _SNAP * rows_per_bucket / scale))
    times, rows = np.array(bounds, np.int64).reshape(-1, 2).T
    until = parts[1][2] if len(parts) > 1 else None
    return Cuts(tuple(buckets), Keys(times, rows), until)


def overlap(groups: Sequence[GroupOrder], cuts: Cuts) -> float:
    """How often a row is read if every bucket reads the row groups that have rows of it."""
    read = sum(each.num_rows * int(np.ptp(cuts(each.ends)) + 1) for each in groups if each.num_rows)
    return read / max(1, sum(each.num_rows for each in groups))


@dataclass(frozen=True, slots=True)
class _Edges:
    """Where row groups of the source start, if these follow each other in the order.

    A bucket that starts there need not read the row group before it.

    Args:
        sample: places of rows, rising.
        starts: first places of the row groups, rising.
        at: where these are in the sample.
    """

    sample: Keys
    starts: Keys
    at: Ints

    @staticmethod
    def of(groups: Sequence[GroupOrder], sample: Keys) -> _Edges:
        """The starts of the row groups; none where they overlap."""
        ends = Keys.joined([each.ends for each in groups if each.num_rows])
        rising = ends.sorted()
        if np.array_equal(rising.rows, ends.rows):
            starts = ends.take(slice(None, None, 2))
        else:
            starts = ends.take(slice(0, 0))
        passed = sample.at_or_after(starts)
        return _Edges(sample, starts, np.searchsorted(passed, np.arange(1, len(starts) + 1)))

    def near(self, place: int, most: float) -> tuple[int, int]:
        """The key at a place of the sample, or of a start that is no more than `most` away."""
        if len(self.at):
            nearest = int(np.argmin(np.abs(self.at - place)))
            if abs(int(self.at[nearest]) - place) <= most:
                return int(self.starts.times[nearest]), int(self.starts.rows[nearest])
        return int(self.sample.times[place]), int(self.sample.rows[place])


def _parts(
    groups: Sequence[GroupOrder], sample: Keys, splits: TimeSplits | None
) -> list[tuple[str | None, tuple[int, int], int]]:
    """Name, range in the sample and first time of every split, in the order of time.

    A split that starts at a given time may have rows and none of them in the sample.
    """
    if splits is None:
        return [(None, (0, len(sample)), 0)]
    ends = np.concatenate([each.ends.times for each in groups])
    if splits.times:
        times: dict[str, int | None] = {"valid": splits.valid_from, "test": splits.test_from}
        passed = np.sum([each.before for each in groups], 0)
        rows = np.diff([0, *passed, sum(each.num_rows for each in groups)])
    else:
        times = _times_of(sample, splits.valid or 0.0, splits.test or 0.0)
        rows = None
    found: list[tuple[str | None, tuple[int, int], int]] = []
    name, first, start = "train", 0, int(ends.min())
    for next_name, time in times.items():
        if time is not None:
            place = int(np.searchsorted(sample.times, time))
            found.append((name, (first, place), start))
            name, first, start = next_name, place, time
    found.append((name, (first, len(sample)), start))
    for number, (name_, (low, high), time) in enumerate(found):
        if (high - low if rows is None else rows[number]) <= 0:
            span = f"{ends.min()} to {ends.max()}"
            raise UserError(
                f"splits: no row would be in '{name_}', which starts at {time}; the times are {span}"
            )
    return found


def _times_of(sample: Keys, valid: float, test: float) -> dict[str, int | None]:
    """Times at which the later splits start, if these have some shares of the rows."""
    count = len(sample)

    def at(share: float) -> int:
        return int(sample.times[min(round(count * (1 - share)), count - 1)])

    return {"valid": at(valid + test) if valid else None, "test": at(test) if test else None}
