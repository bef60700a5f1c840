"""Vectors of items that lie beside a source, under the ids that the data set gives the items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from prismrec.data.adapters.vocabulary import Vocabulary
from prismrec.data.semantic.vectors import open_vectors
from prismrec.data.vectors import VectorWriter

DIRECTORY = "_vectors"
"""Beside the rows of a data set, which no reader takes for rows: a directory of Parquet files with
columns `id` and `vector` for each file of vectors."""


def write_item_vectors(source: Path, out: Path, pattern: str, items: Vocabulary) -> list[str]:
    """Write the vectors of the files of a source that match a pattern, if there are any.

    Args:
        source: directory with `.npz` files as `open_vectors` reads them, of raw ids.
        out: directory of the data set.
        pattern: such as `item_vectors_*.npz`; what the `*` stands for becomes the name.
        items: ids of the raw ids. A vector of an item without one is left out.

    Returns:
        Names: vectors are in `_vectors/NAME`.

    Raises:
        UserError: a file holds no vectors.
    """
    names = []
    for path in sorted(source.glob(pattern)):
        before, _, after = pattern.partition("*")
        name = path.name[len(before) : len(path.name) - len(after)]
        opened = open_vectors(path)
        blocks = list(opened.blocks())
        ids = items.encode(pa.array(np.concatenate([ids for ids, _ in blocks])))
        known = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        numbers = ids.fill_null(0).to_numpy()[known]
        order = np.argsort(numbers, kind="stable")
        directory = out / DIRECTORY / name
        directory.mkdir(parents=True)
        writer = VectorWriter(directory, opened.width, ("id",), {"source": path.name})
        vectors = np.concatenate([vectors for _, vectors in blocks])
        writer.write({"id": numbers[order]}, vectors[known[order]])
        writer.close()
        names.append(name)
    return names
