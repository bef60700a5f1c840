"""Sends what the libraries say to the run's log file instead of the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def library_output(path: Path, *, verbose: bool) -> Iterator[None]:
    """Collect logging, warnings and native standard error of this process in a file.

    Args:
        path: the file, appended to.
        verbose: leave everything on the terminal.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, format=_FORMAT)
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)  # native code writes to the descriptor, not to sys.stderr
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
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
