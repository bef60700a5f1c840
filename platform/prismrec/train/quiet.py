"""Sends what the libraries say to the run's log file instead of the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_terminals: list[int] = []
"""Where standard error went before each `library_output` that is open."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def tell(text: str) -> None:
    """Write a line where standard error went before `library_output` took it."""
    os.write(_terminals[0] if _terminals else 2, f"{text}\n".encode())


@contextmanager
def library_output(path: Path, *, verbose: bool) -> Iterator[None]:
    """Collect logging, warnings and everything printed by this process in a file.

    Args:
        path: the file, appended to.
        verbose: leave everything on the terminal, but keep standard output free for results.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format=_FORMAT)
        with _redirected(2, (1,)):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, _redirected(file.fileno(), (1, 2)):
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.handlers, root.level = [handler], logging.INFO
        logging.captureWarnings(True)
        try:
            with warnings.catch_warnings():
                yield
        finally:
            logging.captureWarnings(False)
            root.handlers, root.level = handlers, level


@contextmanager
def _redirected(target: int, descriptors: tuple[int, ...]) -> Iterator[None]:
    """Send what is written to descriptors, by native code too, to another one."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(each) for each in descriptors]
    terminal = os.dup(2)
    _terminals.append(terminal)
    for each in descriptors:
        os.dup2(target, each)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for each, before in zip(descriptors, kept, strict=True):
            os.dup2(before, each)
            os.close(before)
        _terminals.remove(terminal)
        os.close(terminal)
