"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_LEAST_WIDTH = 5
"""Characters of a line that a column keeps beside one that is not broken over lines."""
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def print_json(document: Any) -> None:
    """Print one JSON document on standard output; a number without a finite value is null."""
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    print_text(text + "\n")


def print_text(text: str) -> None:
    """Print plain text on standard output, as it stands."""
    sys.stdout.write(text)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str = "",
    whole: Sequence[str] = (),
) -> None:
    """Print a table on standard output; numbers stand on the right, `ok`, `warn`, `fail` in colour.

    Args:
        columns: their names.
        rows: a value for each column.
        title: above the table.
        whole: columns whose values are copied from the screen: others are broken over lines first,
            and where that is not enough the table is wider than the terminal.
    """
    table = Table(title=title or None, title_justify="left")
    cells = [[_cell(value) for value in row] for row in rows]
    least = 1
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        width = max(map(cell_len, (column, *(row[index] for row in cells))))
        width = width if column in whole else min(width, _LEAST_WIDTH)
        least += width + 3
        table.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=column in whole,
            min_width=width if whole else None,
        )
    for row in cells:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = Console()
    if whole and console.width < least:
        console = Console(width=least)
    console.print(table)


def note(message: str) -> None:
    """Print a line for the person at the terminal on standard error."""
    sys.stderr.write(message + "\n")


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, gone when the work is done; none where that is no terminal.

    Yields:
        What the work calls now and then with how many units are done and how many there are.
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error for work of several parts; none where that is no terminal.

    Yields:
        What the work calls with what it does, how much of it is done and how much there is.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda title, done, total: bar.update(
            task, description=title, completed=done, total=total
        )


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """A spinner on standard error while work of unknown length goes on."""
    with Console(stderr=True).status(title):
        yield


def quiet_libraries(verbose: bool) -> None:
    """Hide what libraries say, in this process and those it starts, unless `verbose`."""
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def report_failure(error: BaseException, message: str, verbose: bool) -> None:
    """Print why a command failed on standard error; with `verbose`, the traceback before it."""
    if verbose:
        traceback.print_exception(error)
    Console(stderr=True, highlight=False).print(
        Text.assemble(("error: ", "bold red"), message), soft_wrap=True
    )


def _finite(value: Any) -> Any:
    """The same document with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
