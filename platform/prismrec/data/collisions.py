"""What the kinds of ids of a recipe make of the ids in its training rows: rows used, shared, unknown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prismrec.config import Recipe
from prismrec.data.encode.codes import CodeEncoder
from prismrec.data.encode.encoders import Encoder, HashEncoder
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.tables import encoders_of
from prismrec.data.source import DataSource
from prismrec.data.vocabulary import count_ids
from prismrec.data.write import Progress


@dataclass(frozen=True, slots=True)
class TableIds:
    """The ids of one table in the training rows.

    Args:
        table: its name.
        kind: its kind of ids.
        rows: rows for known ids.
        used_rows: those of them that some id looks up.
        ids: distinct ids.
        sharing: those of them that have all their rows in common with another id.
        expected_sharing: what the formula says of that for a hash, 0 for other kinds.
        values: ids in the rows.
        unknown_values: those of them that have no row of their own; missing ones are no ids.
        sharing_values: those of them that share their rows.
    """

    table: str
    kind: str
    rows: int
    used_rows: int
    ids: int
    sharing: int
    expected_sharing: float
    values: int
    unknown_values: int
    sharing_values: int


def table_ids(
    recipe: Recipe, source: DataSource, progress: Progress | None = None
) -> list[TableIds]:
    """Count the ids of every table in the rows of `data.splits.train`, in one pass.

    Memory is that of the distinct ids of all tables, see `IdCounter`. A managed table is left out:
    which ids have rows changes while it is trained.

    Args:
        recipe: features, tables and splits.
        source: the data set.
        progress: called after every row group with how many are read and how many there are.

    Raises:
        UserError: a column, condition or vocabulary cannot be read.
    """
    encoders = encoders_of(recipe, source.schema)
    of_table: dict[str, Encoder] = {}
    columns: dict[str, dict[str, None]] = {}
    for key, column, table in recipe.features.id_lists:
        if not isinstance(encoders[key], CodeEncoder):
            of_table[table] = encoders[key]
            columns.setdefault(table, {})[column] = None
    wanted = {name: tuple(each) for name, each in columns.items()}
    counters = count_ids(source, wanted, recipe.data.splits.train, progress)
    found = []
    for name, encoder in of_table.items():
        options = recipe.embedding.tables.get(name)
        kind = options.ids.kind if options else "direct"
        found.append(_table(name, kind, encoder, counters[name].counted()))
    return found


def expected_sharing(num_ids: int, rows: int, hashes: int) -> float:
    """Expected share of ids that have all their rows in common with another one.

    Two ids share the one row of one hash with probability 1 / rows. Two hashes draw two rows each
    from the same table, in any order, and their sums are equal with probability
    2 / rows^2 - 1 / rows^3.

    >>> [round(expected_sharing(ids, 1000, 1), 3) for ids in (100, 500, 1000, 3000)]
    [0.094, 0.393, 0.632, 0.95]
    """
    meet = 1 / rows if hashes == 1 else 2 / rows**2 - 1 / rows**3
    if num_ids <= 1:
        return 0.0
    return 1.0 if meet >= 1 else -math.expm1((num_ids - 1) * math.log1p(-meet))


def _table(name: str, kind: str, encoder: Encoder, counted: tuple[Ints, Ints]) -> TableIds:
    ids, counts = counted
    rows, unknown = encoder(ids)
    rows = rows.reshape(len(ids), encoder.rows_per_id)
    is_known = np.ones(len(ids), bool) if unknown is None else ~unknown
    rows, known_counts = rows[is_known], counts[is_known]
    hashes = len(encoder.seeds) if isinstance(encoder, HashEncoder) else 0
    if hashes == 2:
        rows = np.sort(rows, axis=1)  # a sum has no order
    keys = rows[:, 0]
    for column in rows.T[1:]:  # numbered anew each time, so that the products stay small
        keys = np.unique(keys * encoder.rows.total + column, return_inverse=True)[1]
    _, place, users = np.unique(keys, return_inverse=True, return_counts=True)
    is_shared = users[place] > 1
    share = expected_sharing(len(rows), encoder.rows.known, hashes) if hashes else 0.0
    return TableIds(
        table=name,
        kind=kind,
        rows=encoder.rows.known,
        used_rows=len(np.unique(rows)),
        ids=len(ids),
        sharing=int(is_shared.sum()),
        expected_sharing=share * len(rows),
        values=int(counts.sum()),
        unknown_values=int(counts.sum() - known_counts.sum()),
        sharing_values=int(known_counts[is_shared].sum()),
    )
