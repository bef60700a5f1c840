"""How a managed table's rows are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from prismrec.config.embedding import TableOptions
from prismrec.config.ids import ManagedIds


@dataclass(frozen=True, slots=True)
class ManagedRows:
    """How a table gives its rows to ids as they come.

    Args:
        options: who is given a row, and who loses it.
        buckets: equal parts of the rows that ids are spread over by their hash, a multiple of every
            number of ranks; the last row of each is that of the ids without a row in it.
    """

    options: ManagedIds
    buckets: int


def managed_rows(options: TableOptions | None, buckets: int) -> ManagedRows | None:
    """How a table's rows are given to ids as they come; None where an id's row is fixed.

    Args:
        options: the table's in the recipe, if it has any.
        buckets: see `ManagedRows`.
    """
    if options is None or not isinstance(options.ids, ManagedIds):
        return None
    return ManagedRows(options.ids, buckets)
