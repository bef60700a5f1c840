"""The run's own record, written and followed."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path

from prismrec.train.events import EventLog, follow


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.log_parameters({"world_size": 2})
    log.log_metrics({"loss": 0.5, "auc": math.nan, "rate": math.inf}, 7)
    log.log_file(tmp_path / "plan.json", "plans")
    log.close()
    parameters, metrics, file = map(
        json.loads, (tmp_path / "events.jsonl").read_text().splitlines()
    )
    assert parameters.pop("time") <= metrics.pop("time") <= file.pop("time")
    assert parameters == {"event": "parameters", "values": {"world_size": 2}}
    values = {"loss": 0.5, "auc": None, "rate": None}
    assert metrics == {"event": "metrics", "step": 7, "values": values}
    assert file == {"event": "file", "path": str(tmp_path / "plan.json"), "folder": "plans"}


def test_a_second_start_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        EventLog(tmp_path / "events.jsonl").log_metrics({}, step)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


class Script(threading.Event):
    """The end of a run, before which something happens each time its follower waits for more."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        super().__init__()
        self._acts = list(acts)

    def wait(self, timeout: float | None = None) -> bool:
        if self._acts:
            self._acts.pop(0)()
        if not self._acts:
            self.set()
        return self.is_set()


def test_only_what_is_new_is_followed_and_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.log_metrics({}, 1)

    def write(*steps: int) -> None:
        for step in steps:
            log.log_metrics({}, step)

    script = Script(lambda: write(2), lambda: None, lambda: write(3, 4))
    assert [event["step"] for event in follow(path, script)] == [2, 3, 4]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    script = Script(lambda: append('{"step":'), lambda: append(' 1}\n{"st'), lambda: append("ep"))
    assert list(follow(path, script)) == [{"step": 1}]


def test_a_follower_passes_over_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = Script(
        lambda: path.write_text('{"event": "metr'),  # and then the run was killed, and resumed
        lambda: EventLog(path).log_metrics({}, 7),
    )
    assert [event["step"] for event in follow(path, script)] == [7]
