"""Rectangles of rows and columns of a table, and the stored blocks that they meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prismrec.checkpoint.manifest import Block, TensorEntry


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a table in one set.

    Args:
        row: first row.
        rows: number of rows.
        col: first column.
        cols: number of columns.
    """

    row: int
    rows: int
    col: int
    cols: int

    def overlap(self, block: Block) -> Region | None:
        """What the region and a stored block share; None if nothing."""
        row, col = max(self.row, block.row), max(self.col, block.col)
        rows = min(self.row + self.rows, block.row + block.rows) - row
        cols = min(self.col + self.cols, block.col + block.cols) - col
        return Region(row, rows, col, cols) if rows > 0 and cols > 0 else None

    def within(self, row: int, col: int) -> tuple[slice, slice]:
        """The region as slices of a tensor whose first element is at (row, col)."""
        top, left = self.row - row, self.col - col
        return slice(top, top + self.rows), slice(left, left + self.cols)


def overlaps(entry: TensorEntry, region: Region) -> Iterator[tuple[Block, Region]]:
    """The stored blocks that hold a part of a region, each with that part."""
    for block in entry.blocks:
        shared = region.overlap(block)
        if shared is not None:
            yield block, shared
