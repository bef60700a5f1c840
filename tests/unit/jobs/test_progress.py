"""What a person sees of a run that is recorded in its events."""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from prismrec.jobs.progress import shown_progress
from prismrec.train.events import EventLog
from prismrec.train.matches import Match, Matches
from prismrec.train.run_files import RunFiles


def test_what_was_matched_is_shown_once(tmp_path: Path) -> None:
    files, out = RunFiles(tmp_path), io.StringIO()
    match = Match("table", "user/wide", "user/set0", 1041, 1046, 41, "of other runs")
    text = Matches("warm_start", "out/runs/first", (match,)).to_text()
    files.matched.write_text(text)
    log = EventLog(files.events)
    log.log_file(files.matched)  # of an earlier start, which has been shown
    with shown_progress(files.events, Console(file=out, width=40), ("click",)):
        time.sleep(0.05)  # until it follows
        log.log_file(files.matched)
        log.log_file(tmp_path / "other.txt")
        log.log_file(tmp_path / "gone" / "matched.txt")
    assert out.getvalue().strip() == text.strip()
    head, columns, line = text.splitlines()
    assert head == "warm start: out/runs/first"
    assert columns.split() == ["from", "matched", "here", "there"]
    assert line.split(maxsplit=5) == [
        "user/wide",
        "user/set0",
        "1,041",
        "1,046",
        "41",
        "of other runs",
    ]
    assert line.index("1,041") + 5 == columns.index("matched") + 7  # numbers stand on the right


def test_sets_that_collapse_are_told_when_there_are_more_of_them(tmp_path: Path) -> None:
    files, out = RunFiles(tmp_path), io.StringIO()
    log = EventLog(files.events)
    with shown_progress(files.events, Console(file=out, width=40), ("click",)):
        time.sleep(0.05)
        for step, collapsed in ((5, 0.0), (10, 1.0), (15, 1.0), (20, 2.0)):
            shares = {"collapse/share/user/wide": 0.125, "collapse/share/item/wide": 0.5}
            log.log_metrics({"collapse/collapsed_sets": collapsed, **shares}, step)
    first, second = out.getvalue().strip().splitlines()
    assert first == (
        "step 10: 1 of 2 sets of tables use few of their dimensions; the run's metrics "
        "collapse/share/* tell which"
    )
    assert second.startswith("step 20: 2 of 2 sets")
