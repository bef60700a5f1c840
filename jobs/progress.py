"""What a person sees while a run trains: a bar, and one line per evaluation."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prismrec.train.events import follow
from prismrec.train.run_files import MATCHED

_SHOWN = ("auc", "gauc", "logloss", "ne", "pcoc")


@contextmanager
def console_of_stderr() -> Iterator[Console]:
    """A console on what standard error is now, wherever it is sent later."""
    with os.fdopen(os.dup(2), "w") as file:
        yield Console(file=file, highlight=False)


@contextmanager
def shown_progress(events: Path, console: Console, tasks: tuple[str, ...]) -> Iterator[None]:
    """Follow the run's events on the console while the context lasts."""
    ended = threading.Event()
    display = _Display(console, tasks)
    thread = threading.Thread(target=_show, args=(events, ended, display), daemon=True)
    with display.progress:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _show(events: Path, ended: threading.Event, display: _Display) -> None:
    for event in follow(events, ended):
        display.take(event)


class _Display:
    def __init__(self, console: Console, tasks: tuple[str, ...]) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self.progress.add_task("starting workers", total=None, note="")
        self._tasks = tasks
        self._collapsed = 0.0

    def take(self, event: dict[str, Any]) -> None:
        values = event.get("values", {})
        if event["event"] == "parameters" and values.get("total_steps"):
            self.progress.update(self._bar, description="training", total=values["total_steps"])
        elif event["event"] == "file":
            self._file(Path(event["path"]))
        elif event["event"] == "metrics":
            self._metrics(values, event["step"])

    def _file(self, path: Path) -> None:
        if path.name == MATCHED and path.exists():
            self.progress.console.print(path.read_text(), markup=False, soft_wrap=True)

    def _metrics(self, values: dict[str, float], step: int) -> None:
        if values.get("train/loss") is not None:
            note = f"loss {values['train/loss']:.4f}  {values['train/examples_per_second']:,.0f} rows/s"
            self.progress.update(self._bar, completed=step, note=note)
        for split in ("window", "valid", "test"):
            parts = [
                f"{task} "
                + " ".join(
                    f"{kind} {values[f'{split}/{task}/{kind}']:.4f}"
                    for kind in _SHOWN
                    if values.get(f"{split}/{task}/{kind}") is not None
                )
                for task in self._tasks
                if f"{split}/{task}/auc" in values
            ]
            if parts:
                line = f"step {step} {split}: " + "; ".join(parts)
                self.progress.console.print(line, markup=False, soft_wrap=True)
        collapsed = values.get("collapse/collapsed_sets", 0.0)
        if collapsed > self._collapsed:
            measured = sum(name.startswith("collapse/share/") for name in values)
            line = (
                f"step {step}: {collapsed:.0f} of {measured} sets of tables use few of their dimensions; "
                "the run's metrics collapse/share/* tell which"
            )
            self.progress.console.print(line, markup=False, soft_wrap=True)
        self._collapsed = max(self._collapsed, collapsed)
