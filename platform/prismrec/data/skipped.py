"""Row groups that cannot be decoded: an error, or rows that count for nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from prismrec.config import UserError
from prismrec.data.rows import Ints
from prismrec.data.source import DataSource, first_line

_log = logging.getLogger(__name__)

T = TypeVar("T")

_ABSENT = (FileNotFoundError, PermissionError, MemoryError)
"""Failures that say nothing about what is in a file; they end a run whatever the recipe says."""


@dataclass(frozen=True, slots=True)
class SkippedGroup:
    """A row group whose rows count for nothing.

    Args:
        file: path under the data directory.
        row_group: its number in the file.
        rows: as many weightless rows stand for it in every epoch.
        why: what the decoder said.
    """

    file: str
    row_group: int
    rows: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"file": self.file, "row_group": self.row_group, "rows": self.rows, "why": self.why}


class Skipped:
    """The row groups of one split that could not be decoded, each told once in the log.

    Threads that decode add to it.

    Args:
        source: the data set.
    """

    def __init__(self, source: DataSource) -> None:
        self._source = source
        self._why: dict[int, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, group: int) -> bool:
        """Whether the row group is passed over."""
        return group in self._why

    def attempt(self, group: int, read: Callable[[], T]) -> T | None:
        """What `read` gives; None, now and ever after, where the row group cannot be decoded.

        It is read twice before it is given up: a network may fail once.

        Raises:
            UserError: the file is away, may not be read, or memory is short.
        """
        if group in self:
            return None
        for is_last in (False, True):
            try:
                return read()
            except _ABSENT as error:
                raise unreadable(self._source.where(group), error) from None
            except (pa.ArrowException, OSError) as error:
                if is_last:
                    self._add(group, first_line(error))
        return None

    def groups(self, counts: Ints) -> list[SkippedGroup]:
        """What was passed over so far, in the order of the files.

        Args:
            counts: rows that the split has of every row group.
        """
        with self._lock:
            found = sorted(self._why.items())
        source = self._source
        return [
            SkippedGroup(
                source.files[source.group_file[group]].name,
                int(source.group_index[group]),
                int(counts[group]),
                why,
            )
            for group, why in found
        ]

    def _add(self, group: int, why: str) -> None:
        with self._lock:
            is_new = group not in self._why
            self._why.setdefault(group, why)
        if is_new:
            _log.warning(
                "%s: cannot be decoded (%s); its rows count for nothing, as data.on_bad_file = "
                "'skip' says",
                self._source.where(group),
                why,
            )


def attempt(
    skipped: Skipped | None, source: DataSource, group: int, read: Callable[[], T]
) -> T | None:
    """What `read` gives; None where the row group cannot be decoded and may be passed over.

    Args:
        skipped: what takes row groups that cannot be decoded; None where each is an error.
        source: the data set.
        group: the row group that `read` reads.
        read: raises what Arrow raises.

    Raises:
        UserError: it cannot be decoded and must not be passed over.
    """
    if skipped is not None:
        return skipped.attempt(group, read)
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(
            source.where(group), error, ", or go on without its rows by data.on_bad_file = 'skip'"
        ) from None


def unreadable(where: str, error: Exception, otherwise: str = "") -> UserError:
    """The error for a row group that Arrow cannot decode.

    Args:
        where: file and row group.
        error: what Arrow said.
        otherwise: what else can be done, after "write the file again or remove it".
    """
    return UserError(
        f"{where}: cannot be decoded ({first_line(error)}); write the file again or remove it{otherwise}"
    )
