"""Vectors by id, kept for lookups: what similarities are made of.

Notation: n vectors, D width, b ids asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from prismrec.config import UserError
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.numbers.quantise import Doubles
from prismrec.data.rows import Floats
from prismrec.data.semantic.vectors import ItemVectors, open_vectors

_KEPT_FILES = 8
NO_VECTOR = -1


@dataclass(frozen=True, slots=True, eq=False)
class KnownVectors:
    """Vectors that are never trained.

    Args:
        ids: (n,) the ids that have one, rising.
        places: (n,) the row of each in `vectors`.
        vectors: (n, D) float32, finite; a `.npy` of this type is read where it lies.
        lengths: (n,) length of each.
    """

    ids: Ints
    places: Ints
    vectors: Floats
    lengths: Doubles

    @property
    def width(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def rows_of(self, ids: Ints) -> Ints:
        """(b,) rows of the vectors of ids, `NO_VECTOR` where there is none."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.places[at], NO_VECTOR)


def known_vectors(path: str, where: str) -> KnownVectors:
    """The vectors of a file; a process reads a file once.

    Args:
        path: Parquet, `.npz` or `.npy`, see `open_vectors`; or a directory with one Parquet file.
        where: the recipe key, for errors.

    Raises:
        UserError: the file cannot be read, or names an id twice.
    """
    try:
        file = Path(one_file(path))
        facts = file.stat() if file.exists() else None
        return _read(str(file), facts.st_mtime_ns if facts else 0, facts.st_size if facts else 0)
    except UserError as error:
        raise UserError(f"{where}: {error.message}") from None


def one_file(path: str) -> str:
    """The file itself, or the only Parquet file of a directory.

    Raises:
        UserError: the directory has none or several.
    """
    if not Path(path).is_dir():
        return path
    files = sorted(Path(path).glob("*.parquet"))
    if len(files) != 1:
        raise UserError(f"{path} is a directory with {len(files)} Parquet files; name one file")
    return str(files[0])


@lru_cache(maxsize=_KEPT_FILES)
def _read(path: str, changed: int, size: int) -> KnownVectors:
    """The vectors of a file as it was when it was last changed, so that a new file is read anew."""
    found = open_vectors(Path(path))
    ids, lengths = np.empty(found.num_rows, np.int64), np.empty(found.num_rows)
    vectors, is_mapped = _room(path, found)
    first = 0
    for some, block in found.blocks():
        here = slice(first, first + len(some))
        ids[here] = some
        lengths[here] = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        if not is_mapped:
            vectors[here] = block
        first = here.stop
    order = np.argsort(ids, kind="stable")
    return KnownVectors(ids[order], order, vectors, lengths)


def _room(path: str, found: ItemVectors) -> tuple[Floats, bool]:
    """The vectors themselves where the file can stand for memory, else room for them.

    Returns:
        (n, D), and whether it is the file.
    """
    if path.endswith(".npy"):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.dtype == np.float32:
            return mapped, True
    return np.empty((found.num_rows, found.width), np.float32), False
