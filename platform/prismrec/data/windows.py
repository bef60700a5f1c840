"""A stream's files cut into windows of event time: which rows are trained on next, and which came late.

All of it is arithmetic on names and times, so the same files in the same order of arrival give the same
slices; the position is plain data and goes into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prismrec.data.arrivals import Arrived

Kind = Literal["window", "late"]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that are trained on together: those of some files whose time is in [start, stop).

    Args:
        kind: rows of a window on time, or rows of earlier windows that came late.
        start: first time.
        stop: the time after the last.
        files: bytes of the files by name.
    """

    kind: Kind
    start: int
    stop: int
    files: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def conditions(self, time: str) -> tuple[str, ...]:
        """The slice's rows, as a split of a recipe.

        >>> Slice("window", 0, 3600, {}).conditions("at")
        ('at >= 0', 'at < 3600')
        """
        return f"{time} >= {self.start}", f"{time} < {self.stop}"


@dataclass(slots=True)
class Position:
    """How far a stream has been read.

    Args:
        start: first time of the next window; None before the first one.
        newest: latest time of any file taken.
        files: bytes of the files taken, by name; those that have left the directory are forgotten.
        waiting: earliest and latest time, by name, of files with rows for windows to come.
        late: the same of files with rows before `start`, to be trained on before the next window.
        windows: windows done.
        late_files: names of the last files that came late.
        num_late_files: all of them.
        skipped_rows: rows that came late and were left out.
        current: the slice that is being trained on.
    """

    start: int | None = None
    newest: int | None = None
    files: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)
    late: dict[str, tuple[int, int]] = field(default_factory=dict)
    windows: int = 0
    late_files: list[str] = field(default_factory=list)
    num_late_files: int = 0
    skipped_rows: int = 0
    current: Slice | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Position:
        """The position that `to_json` gave; the beginning where it is empty."""
        values = dict(value)
        for name in ("waiting", "late"):
            spans = values.get(name, {}).items()
            values[name] = {file: (int(low), int(high)) for file, (low, high) in spans}
        if values.get("current") is not None:
            values["current"] = Slice(**values["current"])
        return cls(**values)

    def take(self, file: Arrived, *, trains_late: bool) -> bool:
        """Take a file that arrived, and say whether rows of it came late.

        Args:
            file: which.
            trains_late: whether such rows are to be trained on.
        """
        self.files[file.name] = file.size
        self.newest = file.high if self.newest is None else max(self.newest, file.high)
        is_late = self.start is not None and file.low < self.start
        if is_late:
            if trains_late:
                self.late[file.name] = (file.low, file.high)
            self.late_files = [*self.late_files, file.name][-_NAMED:]
            self.num_late_files += 1
        if self.start is None or file.high >= self.start:
            self.waiting[file.name] = (file.low, file.high)
        return is_late

    def forget(self, present: Callable[[list[str]], set[str]]) -> None:
        """Drop the names of files that are done and have left the directory.

        Args:
            present: tells which of some names are still there.
        """
        open_files = self.waiting.keys() | self.late.keys()
        done = [name for name in self.files if name not in open_files]
        there = present(done)
        for name in done:
            if name not in there:
                del self.files[name]

    def advance(self, length: int, lateness: int, *, is_over: bool) -> Slice | None:
        """Make the next slice current and return it, or None while its window is not complete.

        A window is complete once the stream's newest time is at least `lateness` past its end. Windows
        without a row are passed over. Rows that came late go before the window.

        Args:
            length: of a window.
            lateness: see above.
            is_over: nothing more is to come, so every window is complete.
        """
        if self.current is not None:
            raise ValueError("the current slice is not done")
        self.current = self._next(length, lateness, is_over=is_over)
        return self.current

    def done(self, *, has_rows: bool = True) -> None:
        """The current slice was trained on, or has no row to train on."""
        if self.current is None:
            raise ValueError("no slice is current")
        if self.current.kind == "window" and has_rows:
            self.windows += 1
        self.current = None

    def _next(self, length: int, lateness: int, *, is_over: bool) -> Slice | None:
        start = self._next_start(length)
        if start is None or self.newest is None:
            return self._late_slice() if is_over and self.late else None
        stop = start + length
        if not is_over and self.newest < stop + lateness:
            return None
        if self.late:
            return self._late_slice()
        spans = self.waiting.items()
        names = [name for name, (low, high) in spans if low < stop and high >= start]
        self.start = stop
        self.waiting = {name: (low, high) for name, (low, high) in spans if high >= stop}
        return Slice("window", start, stop, {name: self.files[name] for name in names})

    def _next_start(self, length: int) -> int | None:
        """Where the next window with rows begins, as far as the files say."""
        if not self.waiting:
            return None
        first = min(low for low, _ in self.waiting.values()) // length * length
        return first if self.start is None else max(self.start, first)

    def _late_slice(self) -> Slice:
        assert self.start is not None
        names, self.late = self.late, {}
        low = min(low for low, _ in names.values())
        return Slice("late", low, self.start, {name: self.files[name] for name in names})


_NAMED = 20
"""File names that are kept to be told."""
