"""From a file of vectors by id to rows of a table.

Notation: n vectors taken at a time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.rows import Floats, Ints
from prismrec.data.vectors import VectorBlock, VectorFiles
from prismrec.embeddings.row_ids import NO_ROW, RowIds, id_range


@dataclass(frozen=True, slots=True)
class Fit:
    """How vectors are made to fit a table.

    Args:
        scale: what every number is multiplied by.
        largest: largest absolute value that the table's type holds.
    """

    scale: float
    largest: float


def imported_rows(
    files: VectorFiles, table: RowIds, span: range, fit: Fit
) -> Iterator[tuple[Ints, Floats]]:
    """The vectors of files that belong to some rows of a table, a bounded number at a time.

    A vector without an id is that of the only unknown row; where there are several, that of the
    one in the column `row`, if the file has it.

    Args:
        files: the vectors.
        table: what the table's rows stand for.
        span: the rows that are wanted.
        fit: how the vectors are made to fit.

    Yields:
        (n,) rows of the span, each once in all, and their vectors (n, D).

    Raises:
        UserError: two vectors belong to one row, a number is too large, or see `VectorFiles`.
    """
    seen = np.zeros(len(span), np.bool_)
    unknown = table.unknown
    low, high = id_range(table, span.start, span.stop)
    for block in files.blocks(low, high):
        rows = np.where(
            block.keys == NULL_ID, _rows_of_null(block, unknown), table.rows_of(block.keys)
        )
        wanted = np.flatnonzero((rows >= span.start) & (rows < span.stop))
        if not len(wanted):
            continue
        rows = rows[wanted]
        _mark(seen, rows - span.start, block, wanted)
        vectors = block.vectors[wanted] * np.float32(fit.scale)
        _check_size(vectors, fit, block, wanted)
        yield rows, vectors


def _rows_of_null(block: VectorBlock, unknown: Ints) -> Ints:
    """(n,) the unknown row of each vector, if it turns out to have no id."""
    if len(unknown) == 1:
        return np.full(len(block.keys), unknown[0])
    if block.rows is None:
        return np.full(len(block.keys), NO_ROW)
    return np.where(np.isin(block.rows, unknown), block.rows, NO_ROW)


def _mark(seen: NDArray[np.bool_], places: Ints, block: VectorBlock, wanted: Ints) -> None:
    """Note rows that have got their vector, and refuse a second one."""
    order = np.argsort(places, kind="stable")
    again = seen[places]
    again[order[1:]] |= places[order[1:]] == places[order[:-1]]
    if again.any():
        index = int(wanted[np.flatnonzero(again)[0]])
        key = int(block.keys[index])
        what = "a vector without an id" if key == NULL_ID else f"id {key}"
        raise UserError(
            f"{block.place(index)}: column 'id': {what} stands in the file a second time; "
            "keep one vector for each id"
        )
    seen[places] = True


def _check_size(vectors: Floats, fit: Fit, block: VectorBlock, wanted: Ints) -> None:
    large = ~(np.abs(vectors) <= fit.largest)
    if large.any():
        row, col = np.argwhere(large)[0].tolist()
        raise UserError(
            f"{block.place(int(wanted[row]))}: number {col} of column 'vector' is "
            f"{vectors[row, col]:g} when scaled by {fit.scale:g}, but the table's type holds at "
            f"most {fit.largest:g}; use data_type = 'fp32' or a smaller scale"
        )
