"""Tables of a checkpoint as Parquet files of vectors by id: all of a table, or what a step changed.

Notation: n rows of a block, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import UserError
from prismrec.data.encode.encoders import Encoder, HashEncoder, QuotientRemainderEncoder
from prismrec.data.encode.ids import NULL_ID
from prismrec.data.encode.numbers.tables import NumberRows
from prismrec.data.rows import Floats, Ints
from prismrec.data.vectors import Key, VectorWriter
from prismrec.data.write import staged
from prismrec.embeddings.row_ids import RowIds

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows there are."""

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of one table in one set.

    Args:
        table: name of the table.
        set_name: name of the set.
        rows: vectors in the files.
        of: vectors that the table has.
        directory: of the files.
        keys: columns that name the vectors.
    """

    table: str
    set_name: str
    rows: int
    of: int
    directory: Path
    keys: tuple[Key, ...]

    def to_json(self) -> dict[str, Any]:
        """A line of what the command prints with `--json`."""
        return {
            "table": self.table,
            "set": self.set_name,
            "rows": self.rows,
            "of": self.of,
            "directory": str(self.directory),
        }


@dataclass(frozen=True, slots=True)
class _Block:
    """Some vectors of a table, `looked_at` of its rows or ids further on."""

    keys: dict[Key, Ints]
    vectors: Floats
    looked_at: int


@dataclass(frozen=True, slots=True)
class _View:
    """One table in one set, and the step after which a row must have been touched, if any."""

    tables: CheckpointTables
    table: str
    set_name: str
    since: int | None

    @property
    def keys(self) -> tuple[Key, ...]:
        if isinstance(self.encoder, HashEncoder | NumberRows):
            return ("row",)
        return ("id",) if isinstance(self.encoder, QuotientRemainderEncoder) else ("id", "row")

    @property
    def encoder(self) -> Encoder | NumberRows:
        return self.tables.ids.encoder(self.table)

    @property
    def size(self) -> int:
        """Rows or ids to look at."""
        encoder = self.encoder
        if isinstance(encoder, QuotientRemainderEncoder):
            return encoder.num_ids + 1
        return self.tables.entry(self.table, self.set_name).rows

    def blocks(self) -> Iterator[_Block]:
        """The vectors, a bounded number at a time."""
        encoder, width = self.encoder, self.tables.entry(self.table, self.set_name).cols
        step = max(1024, _BLOCK_BYTES // (4 * width))
        for start in range(0, self.size, step):
            stop = min(start + step, self.size)
            if isinstance(encoder, QuotientRemainderEncoder):
                yield self._sums(encoder, start, stop)
            else:
                yield self._rows(self.tables.ids.row_ids(self.table), start, stop)

    def _rows(self, row_ids: RowIds | None, start: int, stop: int) -> _Block:
        rows = np.arange(start, stop)
        keep = np.ones(len(rows), np.bool_)
        if self.since is not None:
            keep = self._touched(rows) > self.since
        if row_ids is None:
            return _Block({"row": rows[keep]}, self._vectors(rows[keep]), len(rows))
        ids = row_ids.ids_of(start, stop)
        if self.since is None:  # a row that has lost its id since a step belongs to the change
            keep = (ids != NULL_ID) | np.isin(rows, row_ids.unknown)
        keys: dict[Key, Ints] = {"id": ids[keep], "row": rows[keep]}
        return _Block(keys, self._vectors(rows[keep]), len(rows))

    def _sums(self, encoder: QuotientRemainderEncoder, start: int, stop: int) -> _Block:
        """Vectors of ids that are sums of rows; the last id is the missing one."""
        ids = np.arange(start, stop)
        ids[ids == encoder.num_ids] = NULL_ID
        rows = encoder(ids)[0].reshape(len(ids), encoder.rows_per_id)
        if self.since is not None:
            touched = self._touched(rows.reshape(-1)).reshape(rows.shape).max(axis=1)
            ids, rows = ids[touched > self.since], rows[touched > self.since]
        vectors = self._vectors(rows.reshape(-1))
        parts = vectors.reshape(len(ids), encoder.rows_per_id, vectors.shape[1])
        return _Block({"id": ids}, parts.sum(axis=1), stop - start)

    def _touched(self, rows: Ints) -> Ints:
        return self.tables.touched(self.table, self.set_name, torch.from_numpy(rows)).numpy()

    def _vectors(self, rows: Ints) -> Floats:
        found = self.tables.vectors(self.table, self.set_name, torch.from_numpy(rows))
        return found.float().numpy()


def export_tables(
    tables: CheckpointTables,
    chosen: list[tuple[str, str]],
    out: Path,
    progress: Progress,
    since: int | None = None,
) -> list[Written]:
    """Write vectors into `out/TABLE/SET/part-00000.parquet`, ...; `out` appears whole or not at all.

    Args:
        tables: an open checkpoint.
        chosen: tables and sets, see `CheckpointTables.chosen`.
        out: directory to make.
        progress: told how far it is.
        since: only vectors of rows that training touched after this step; None for all.

    Raises:
        UserError: `out` is there already, the checkpoint is damaged, or it does not know which rows
            were touched since then.
    """
    if since is not None and since > tables.step:
        raise UserError(
            f"--since {since}: the checkpoint {tables.reader.path} is of step {tables.step}; name an "
            "earlier step or a later checkpoint"
        )
    views = [_View(tables, table, set_name, since) for table, set_name in chosen]
    total, done, written = sum(view.size for view in views), 0, []
    with staged(out) as stage:
        for view in views:
            place = Path(view.table) / view.set_name
            (stage / place).mkdir(parents=True)
            width = tables.entry(view.table, view.set_name).cols
            writer = VectorWriter(stage / place, width, view.keys, _facts(view))
            for block in view.blocks():
                writer.write(block.keys, block.vectors)
                done += block.looked_at
                progress(done, total)
            writer.close()
            written.append(
                Written(
                    view.table, view.set_name, writer.num_rows, view.size, out / place, view.keys
                )
            )
    return written


def _facts(view: _View) -> Mapping[str, Any]:
    return {
        "table": view.table,
        "set": view.set_name,
        "ids": view.tables.ids.kind(view.table),
        "step": view.tables.step,
        "since": view.since,
    }
