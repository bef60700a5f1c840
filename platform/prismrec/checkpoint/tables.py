"""The tables of a checkpoint as somebody outside of the run sees them: sets, and ids instead of rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from prismrec.checkpoint.manifest import DTYPES, TableEntry
from prismrec.checkpoint.maps import row_owners
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.checkpoint.snapshot import TOUCHED, WEIGHT
from prismrec.config import UserError, from_dict, nearest
from prismrec.data.encode.copies import with_copies
from prismrec.data.encode.tables import encoded_tables
from prismrec.data.schema import DataSchema
from prismrec.embeddings.row_ids import ListedRows, TableIds


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table in one set, as `prismrec tables list` prints it.

    Args:
        table: name of the table.
        set_name: name of the set.
        rows: all rows, those of unknown ids among them.
        width: numbers of a vector.
        data_type: stored type of the weights.
        weight_bytes: of the weights.
        state_bytes: of everything else that is kept of it.
        ids: kind of its ids.
        is_tracked: whether it is known when each row was touched last.
    """

    table: str
    set_name: str
    rows: int
    width: int
    data_type: str
    weight_bytes: int
    state_bytes: int
    ids: str
    is_tracked: bool

    def to_json(self) -> dict[str, Any]:
        """The line of `tables list --json`."""
        return {
            "table": self.table,
            "set": self.set_name,
            "rows": self.rows,
            "width": self.width,
            "type": self.data_type,
            "weight_bytes": self.weight_bytes,
            "state_bytes": self.state_bytes,
            "ids": self.ids,
            "touched": self.is_tracked,
        }


class CheckpointTables:
    """An open checkpoint with the meaning of its rows. A context manager.

    Args:
        path: the checkpoint's directory.

    Raises:
        UserError: `path` is not a checkpoint of a run, or its files of ids cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.reader = CheckpointReader(path)
        extra = self.reader.manifest.extra
        if not {"recipe", "schema"} <= extra.keys():
            raise UserError(f"{path}: no run wrote this checkpoint: it holds no recipe")
        recipe = with_copies(from_dict(extra["recipe"], source=str(path)), self.reader.path)
        schema = DataSchema.model_validate(extra["schema"])
        self.reader.verify_copies()
        self.ids = TableIds(encoded_tables(recipe, schema), self._owners)
        """What the rows stand for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reader.__exit__(kind, value, trace)

    @property
    def step(self) -> int:
        """Training steps done."""
        return self.reader.manifest.step

    def facts(self) -> list[TableFacts]:
        """Every table in every set."""
        return [self._facts(*key.split("/")) for key in self.reader.manifest.tables]

    def chosen(self, table: str | None, set_name: str | None) -> list[tuple[str, str]]:
        """Names of tables and sets: all, or those asked for.

        Raises:
            UserError: there is no such table, set or table in that set.
        """
        keys = [tuple(key.split("/")) for key in self.reader.manifest.tables]
        for word, wanted, known in (
            ("table", table, [name for name, _ in keys]),
            ("set", set_name, [name for _, name in keys]),
        ):
            if wanted is not None and wanted not in known:
                raise UserError(
                    f"--{word}: the checkpoint {self.reader.path} has no {word} '{wanted}'; "
                    f"{nearest(wanted, known)}"
                )
        found = [(t, s) for t, s in keys if table in (None, t) and set_name in (None, s)]
        if not found:
            raise UserError(f"--set: table '{table}' has no vectors in set '{set_name}'")
        return found

    def entry(self, table: str, set_name: str) -> TableEntry:
        """What is stored of a table in a set."""
        return self.reader.manifest.tables[f"{table}/{set_name}"]

    def vectors(self, table: str, set_name: str, rows: Tensor) -> Tensor:
        """(n, width) weights of any rows, in their stored type."""
        entry = self.entry(table, set_name)
        return self.reader.gather(entry.tensors[WEIGHT], rows, 0, entry.cols)

    def touched(self, table: str, set_name: str, rows: Tensor) -> Tensor:
        """(n,) steps done when rows were touched last, -1 for never.

        Raises:
            UserError: the run did not keep that.
        """
        entry = self.entry(table, set_name)
        if TOUCHED not in entry.tensors:
            raise UserError(
                f"{self.reader.path}: it is not known which rows of {table}/{set_name} were touched "
                "when; train with embedding.track_touched = true"
            )
        return self.reader.gather(entry.tensors[TOUCHED], rows, 0, entry.cols)

    def _owners(self, table: str) -> ListedRows:
        entry = self.reader.manifest.maps[table]
        size = entry.rows // entry.buckets
        return ListedRows(
            row_owners(self.reader, table).numpy(), np.arange(size - 1, entry.rows, size)
        )

    def _facts(self, table: str, set_name: str) -> TableFacts:
        entry = self.entry(table, set_name)
        weight = entry.tensors[WEIGHT]
        num_bytes = {
            name: entry.rows
            * (tensor.per_row or entry.cols)
            * torch.empty(0, dtype=DTYPES[tensor.dtype]).element_size()
            for name, tensor in entry.tensors.items()
        }
        return TableFacts(
            table=table,
            set_name=set_name,
            rows=entry.rows,
            width=entry.cols,
            data_type={"F32": "fp32", "F16": "fp16"}.get(weight.dtype, weight.dtype),
            weight_bytes=num_bytes.pop(WEIGHT),
            state_bytes=sum(num_bytes.values()),
            ids=self.ids.kind(table),
            is_tracked=TOUCHED in entry.tensors,
        )
