"""Row filters of a split, and how many rows of every row group pass them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.config import UserError, nearest
from prismrec.data.skipped import Skipped, attempt
from prismrec.data.source import DataSource

Ints = NDArray[np.int64]

_CONDITION = re.compile(r"\s*(?P<column>.+?)\s*(?P<op>==|!=|<=|>=|<|>)\s*(?P<literal>.+?)\s*")
_NUMBER = re.compile(r"[-+]?(\d[\d_]*)?(\.\d*)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class RowFilter:
    """Conditions that all hold for the rows of a split.

    A row whose column is null passes no condition on that column.

    Args:
        conditions: as the recipe has them.
        columns: the columns they read.
        expression: the same for Arrow; None takes every row.
    """

    conditions: tuple[str, ...]
    columns: frozenset[str]
    expression: pc.Expression | None


def row_filter(conditions: Sequence[str], source: DataSource, where: str) -> RowFilter:
    """Parse conditions `column op literal` against the columns of a data set.

    Args:
        conditions: operators ==, !=, <, <=, >, >=; integers, decimals or single-quoted strings.
        source: the data set.
        where: the recipe key, for errors.

    Raises:
        UserError: a condition cannot be read, names no column, or compares text with a number.
    """
    expression, columns = None, set()
    for text in conditions:
        column, condition = _parse(text, source, f"{where}: '{text}'")
        columns.add(column)
        expression = condition if expression is None else expression & condition
    return RowFilter(tuple(conditions), frozenset(columns), expression)


def count_rows(source: DataSource, rows: RowFilter, skipped: Skipped | None = None) -> Ints:
    """Rows of every row group that pass, remembered between runs by fingerprint and filter.

    A row group that is passed over counts with all of its rows; counts with such are not
    remembered.

    Row groups whose statistics settle the question are not decoded. The memory lies in
    `$XDG_CACHE_HOME/prismrec/counts` (`~/.cache` where that is not set), or in `source.counts`.

    Args:
        source: the data set.
        rows: the filter.
        skipped: takes row groups that cannot be decoded; None where these are errors.

    Raises:
        UserError: a row group cannot be decoded.
    """
    if rows.expression is None:
        return source.group_rows
    cache, own = _cache_file(source, rows), source.counts
    counts = _load(cache, source) if own is None else own.get(rows.conditions)
    if counts is None:
        counts = count_matching(source, rows.expression, skipped)
        if skipped is not None and skipped.groups(counts):
            return counts
        if own is None:
            _store(cache, counts)
        else:
            own[rows.conditions] = counts
    return counts


def count_matching(
    source: DataSource, expression: pc.Expression, skipped: Skipped | None = None
) -> Ints:
    """Rows of every row group for which `expression` holds; all of one that is passed over.

    Raises:
        UserError: a row group cannot be decoded, and `skipped` is None.
    """
    first = np.searchsorted(source.group_file, np.arange(len(source.files)))

    def of_file(file: int) -> list[int]:
        counts = []
        for group, fragment in enumerate(source.fragments(file), int(first[file])):
            scanner = fragment.scanner(source.arrow(file), filter=expression)
            count = attempt(skipped, source, group, scanner.count_rows)
            counts.append(int(source.group_rows[group]) if count is None else int(count))
        return counts

    with ThreadPoolExecutor(4) as pool:
        per_file = list(pool.map(of_file, range(len(source.files))))
    return np.array([count for counts in per_file for count in counts], np.int64)


def _parse(text: str, source: DataSource, where: str) -> tuple[str, pc.Expression]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(
            f"{where} is not of the form `column op literal` with one of ==, !=, <, <=, >, >="
        )
    name, op, literal = match["column"], match["op"], match["literal"]
    arrow = source.arrow(0)
    if name not in arrow.names:
        raise UserError(f"{where}: no column '{name}'; {nearest(name, arrow.names)}")
    scalar = _scalar(_literal(literal, where), arrow.field(name).type, where)
    column = pc.field(name)
    conditions = {
        "==": column == scalar,
        "!=": column != scalar,
        "<": column < scalar,
        "<=": column <= scalar,
        ">": column > scalar,
        ">=": column >= scalar,
    }
    return name, conditions[op]


def _literal(text: str, where: str) -> int | float | str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    number = _NUMBER.fullmatch(text)
    if number is None or not any(character.isdigit() for character in text):
        raise UserError(
            f"{where}: {text} is neither a number nor a string in single quotes, such as 'text'"
        )
    return float(text) if number[2] or number[3] else int(text)


def _scalar(value: int | float | str, type_: pa.DataType, where: str) -> pa.Scalar:
    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    is_text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    is_number = pa.types.is_integer(inner) or pa.types.is_floating(inner)
    if pa.types.is_boolean(inner) and value in (0, 1):
        return pa.scalar(bool(value))
    if isinstance(value, str) != is_text or not (is_text or is_number):
        kind = "text" if isinstance(value, str) else "a number"
        raise UserError(f"{where}: the column has type {type_}, which {kind} is not compared with")
    return pa.scalar(value)


def _cache_file(source: DataSource, rows: RowFilter) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = json.dumps([source.fingerprint, *rows.conditions])
    return (
        Path(root) / "prismrec" / "counts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    )


def _load(cache: Path, source: DataSource) -> Ints | None:
    try:
        counts = np.array(json.loads(cache.read_text())["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = counts.dtype == np.int64 and counts.shape == source.group_rows.shape
    return counts if fits and ((0 <= counts) & (counts <= source.group_rows)).all() else None


def _store(cache: Path, counts: Ints) -> None:
    """Write by renaming, so that ranks that count at the same time do not see half a file."""
    with contextlib.suppress(OSError):  # without a writable cache the next run counts again
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
            json.dump({"counts": counts.tolist()}, file)
        os.replace(file.name, cache)
