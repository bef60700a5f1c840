"""Waiting for the next slice of a stream: rank 0 looks at the directory, the others hear of it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from prismrec.config.online import OnlineSection
from prismrec.data.arrivals import Arrivals, Arrived
from prismrec.data.filters import count_matching
from prismrec.data.windows import Position
from prismrec.train.process_group import Ranks
from prismrec.train.signals import asked

_log = logging.getLogger(__name__)
_STOP_POLL_S = 0.2
_UNFINISHED_S = 60.0
"""Seconds after which a file that is not whole is named in the log."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What comes next.

    Args:
        position: of the stream, with its current slice; None where there is none.
        stopped_by: name of the signal that asked for the end, or "".
    """

    position: Position | None
    stopped_by: str = ""


class Waiting:
    """Gives one slice of a stream after another, and waits where there is none yet.

    Args:
        section: windows and how long to wait.
        arrivals: the stream.
        time: its time column.
        ranks: this process among the others.
        stop_files: where a request to stop may be.
    """

    def __init__(
        self,
        section: OnlineSection,
        arrivals: Arrivals,
        time: str,
        ranks: Ranks,
        stop_files: tuple[Path, ...],
    ) -> None:
        self._section = section
        self._arrivals = arrivals
        self._time = time
        self._ranks = ranks
        self._stop_files = stop_files
        self._unfinished: dict[str, float] = {}
        self._told: set[str] = set()
        self._newest_file = _now()

    def next(self, position: Position) -> Turn:
        """The position with its next slice, once there is one; or that the run is to end.

        Collective: every rank calls it; the position of rank 0 counts.

        Raises:
            UserError: see `Arrivals.look`; on rank 0.
        """
        while True:
            answer = self._ranks.share_text(self._answer(position) if self._ranks.is_first else "")
            if answer:
                found = json.loads(answer)
                return Turn(
                    None if found["position"] is None else Position.from_json(found["position"]),
                    found["stopped_by"],
                )

    def _answer(self, position: Position) -> str:
        """What rank 0 says: a turn as JSON, or nothing after waiting for a while."""
        stopped_by = self._stop_asked()
        has_ended = position.windows == self._section.max_windows
        if stopped_by or has_ended:
            return json.dumps({"position": None, "stopped_by": stopped_by})
        for file in self._arrivals.look(position.files):
            self._take(file, position)
        self._name_unfinished()
        section, idle_s = self._section, _now() - self._newest_file
        is_over = section.idle_s is not None and idle_s >= section.idle_s
        if position.advance(section.window, section.lateness, is_over=is_over) is not None:
            position.forget(self._arrivals.present)
            return json.dumps({"position": position.to_json(), "stopped_by": ""})
        if is_over:
            return json.dumps({"position": None, "stopped_by": ""})
        self._sleep()
        return ""

    def _take(self, file: Arrived, position: Position) -> None:
        self._newest_file = _now()
        trains = self._section.late == "train"
        if not position.take(file, trains_late=trains):
            return
        source = self._arrivals.source({file.name: file.size})
        before = pc.field(self._time) < position.start
        rows = int(count_matching(source, before).sum())
        if not trains:
            position.skipped_rows += rows
        what = "trained on before the next window" if trains else "left out"
        _log.warning(
            "%s: %d rows came after their window was trained on; they are %s", file.name, rows, what
        )

    def _name_unfinished(self) -> None:
        now = _now()
        since = {name: self._unfinished.get(name, now) for name in self._arrivals.unfinished}
        for name, first in since.items():
            if now - first >= _UNFINISHED_S and name not in self._told:
                self._told.add(name)
                _log.warning("%s: has no Parquet footer yet and is waited for", name)
        self._unfinished = since

    def _stop_asked(self) -> str:
        return next((name for path in self._stop_files if (name := asked(path))), "")

    def _sleep(self) -> None:
        until = _now() + self._section.poll_s
        while _now() < until and not self._stop_asked():
            time.sleep(min(_STOP_POLL_S, max(0.0, until - _now())))


def _now() -> float:
    return time.monotonic()
