"""Columns of a table in memory, gathered together with their meaning and their vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prismrec.data.adapters.source import log1p_signed
from prismrec.data.adapters.vocabulary import Vocabulary
from prismrec.data.schema import Column, DataSchema, Kind
from prismrec.data.write import write_parts

Values: TypeAlias = pa.Array | pa.ChunkedArray | NDArray[np.generic]


class Columns:
    """Gathers columns of equal length and writes them as a data set."""

    def __init__(self) -> None:
        self._values: dict[str, pa.Array | pa.ChunkedArray] = {}
        self._meaning: dict[str, Column] = {}
        self._vocabularies: dict[str, Vocabulary] = {}

    def add(self, name: str, kind: Kind, values: Values, description: str = "") -> None:
        """Add a column of any kind that has no ids."""
        self._put(name, Column(kind=kind, description=description), values)

    def add_ids(
        self, name: str, values: pa.Array | pa.ChunkedArray, description: str = ""
    ) -> Vocabulary:
        """Add raw values as dense ids with a vocabulary of their own, which is returned."""
        vocabulary = Vocabulary.of(values)
        self.add_encoded(name, vocabulary.encode(values), vocabulary, description)
        return vocabulary

    def add_encoded(
        self, name: str, ids: pa.Array, vocabulary: Vocabulary, description: str = ""
    ) -> None:
        """Add a column (or bags) of ids of a vocabulary that may serve several columns."""
        kind: Kind = "ids" if pa.types.is_list(ids.type) else "id"
        meaning = Column(kind=kind, num_ids=vocabulary.num_ids, description=description)
        self._put(name, meaning, ids)
        self._vocabularies[name] = vocabulary

    def add_count(self, name: str, values: pa.Array | pa.ChunkedArray, description: str) -> None:
        """Add a heavy-tailed number, and `log1p_<name>` beside it."""
        self.add("log1p_" + name, "number", log1p_signed(values), f"ln(1 + x) of {name}")
        self.add(name, "number", pc.cast(values, pa.float32(), safe=False), description)

    def write(self, out: Path, name: str, source: str) -> DataSchema:
        """Write the columns, their schema and their vocabularies into the directory `out`."""
        schema = DataSchema(name=name, columns=self._meaning, source=source)
        out.mkdir(parents=True, exist_ok=True)
        for column, vocabulary in self._vocabularies.items():
            vocabulary.write(out, column)
        write_parts(out, pa.table(self._values), schema)
        return schema

    def _put(self, name: str, meaning: Column, values: Values) -> None:
        assert name not in self._values, name
        array = pa.array(values) if isinstance(values, np.ndarray) else values
        self._values[name], self._meaning[name] = array, meaning
