"""Which rows are in the weights: ranges of lane positions, a few numbers however long the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Range = tuple[int, int]

_SKIPPED = "skipped"
_DROPPED = "dropped"


class Ledger:
    """Rows consumed, for every epoch and lane, as merged ranges [start, stop) of positions.

    A position counts the rows of a lane in the reading order of that epoch; `Reader.rows_at` turns
    it into file, row group and row.
    """

    def __init__(self) -> None:
        self._epochs: dict[int, list[list[Range]]] = {}
        self._skipped: dict[tuple[str, int], int] = {}
        self._dropped: dict[int, tuple[int, list[Range]]] = {}

    def drop(self, step: int, epoch: int, ranges: Sequence[Range]) -> None:
        """Record that the rows of a step were passed, but are not in the weights.

        Args:
            step: steps done before it.
            epoch: of its rows.
            ranges: of every lane.
        """
        self._dropped[step] = epoch, list(ranges)

    @property
    def dropped(self) -> dict[int, tuple[int, list[Range]]]:
        """By step, epoch and ranges of every lane that are not in the weights."""
        return dict(self._dropped)

    def skip(self, file: str, row_group: int, rows: int) -> None:
        """Record that a row group cannot be decoded: its positions were passed, its rows count for nothing.

        Args:
            file: its path under the data directory.
            row_group: number of the row group in the file.
            rows: positions that stand for it in every epoch.
        """
        self._skipped[file, row_group] = rows

    @property
    def skipped(self) -> dict[tuple[str, int], int]:
        """Rows that count for nothing, by file and row group."""
        return dict(self._skipped)

    def add(self, epoch: int, before: Sequence[int], after: Sequence[int]) -> None:
        """Record that every lane went from its offset in `before` to that in `after`.

        Raises:
            ValueError: a lane would go backwards, or a range was recorded already.
        """
        lanes = self._epochs.setdefault(epoch, [[] for _ in before])
        for number, (ranges, start, stop) in enumerate(zip(lanes, before, after, strict=True)):
            if stop < start:
                raise ValueError(f"lane {number} went back from row {start} to {stop}")
            if stop == start:
                continue
            if any(start < high and low < stop for low, high in ranges):
                raise ValueError(f"epoch {epoch}, lane {number}: rows {start}..{stop - 1} twice")
            lanes[number] = _merged([*ranges, (start, stop)])

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs of which rows were consumed."""
        return tuple(sorted(self._epochs))

    def ranges(self, epoch: int) -> tuple[tuple[Range, ...], ...]:
        """Ranges of every lane in one epoch."""
        return tuple(tuple(ranges) for ranges in self._epochs.get(epoch, []))

    @property
    def num_rows(self) -> int:
        """Rows consumed in all epochs."""
        lanes = [ranges for epoch in self._epochs.values() for ranges in epoch]
        return sum(stop - start for ranges in lanes for start, stop in ranges)

    def to_json(self) -> dict[str, Any]:
        """The ledger as JSON values: ranges by epoch, then rows that are not in the weights."""
        epochs: dict[str, Any] = {
            str(epoch): [[list(pair) for pair in ranges] for ranges in lanes]
            for epoch, lanes in sorted(self._epochs.items())
        }
        if self._skipped:
            epochs[_SKIPPED] = [
                {"file": file, "row_group": group, "rows": rows}
                for (file, group), rows in sorted(self._skipped.items())
            ]
        if self._dropped:
            epochs[_DROPPED] = [
                {"step": step, "epoch": epoch, "lanes": [list(pair) for pair in ranges]}
                for step, (epoch, ranges) in sorted(self._dropped.items())
            ]
        return epochs

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ledger:
        """The ledger that `to_json` gave."""
        ledger = cls()
        for each in value.get(_SKIPPED, []):
            ledger.skip(each["file"], each["row_group"], each["rows"])
        for each in value.get(_DROPPED, []):
            ranges = [(int(start), int(stop)) for start, stop in each["lanes"]]
            ledger.drop(each["step"], each["epoch"], ranges)
        for epoch, lanes in value.items():
            if epoch in (_SKIPPED, _DROPPED):
                continue
            ledger._epochs[int(epoch)] = [
                [(int(start), int(stop)) for start, stop in ranges] for ranges in lanes
            ]
        return ledger


def _merged(ranges: list[Range]) -> list[Range]:
    """Ranges that do not overlap, sorted, with those that touch made one."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
