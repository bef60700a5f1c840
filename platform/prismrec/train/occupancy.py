"""How full the tables are whose ids have their rows for good."""

from __future__ import annotations

import math

from prismrec.config import Recipe
from prismrec.config.ids import HashedIds
from prismrec.train.sharding import ShardedModel


def occupancy(recipe: Recipe, sharded: ShardedModel) -> dict[str, float]:
    """Rows that training has looked up, where the recipe has that recorded.

    Collective: every rank calls it.

    Args:
        recipe: for the kinds of ids.
        sharded: the tables.

    Returns:
        `ids/TABLE/fill`, the share of the rows for known ids that were looked up, and of tables with
        one hash `ids/TABLE/collisions`, see `crowding`; nothing without `embedding.track_touched`.
    """
    if sharded.touched is None:
        return {}
    ranks = sharded.ranks
    sharded.touched.merge()
    names, counts = sharded.touched.rows_in_use(ranks.rank, sharded.ranks_per_copy)
    known = {table.name: table.known_rows for table in sharded.spec.tables}
    found = {}
    for name, used in zip(names, ranks.sum(counts).tolist(), strict=True):
        found[f"ids/{name}/fill"] = used / known[name]
        options = recipe.embedding.tables.get(name)
        if options is not None and isinstance(options.ids, HashedIds) and options.ids.hashes == 1:
            collisions = crowding(used, known[name])
            if collisions is not None:
                found[f"ids/{name}/collisions"] = collisions
    return found


def crowding(used: int, rows: int) -> float | None:
    """Estimated share of distinct ids that came to a row which another id had already.

    n ids are expected to leave (1 - 1/H)^n of H rows empty. From that follows n, and the share 1 - m/n
    of the ids is more than the m rows in use can have one each.

    >>> [round(crowding(used, 1000), 3) for used in (1, 100, 632)]
    [0.0, 0.05, 0.367]

    Args:
        used: m.
        rows: H.

    Returns:
        None where no row or every row is in use, which says nothing of n.
    """
    if used == 0 or used >= rows:
        return None
    ids = math.log1p(-used / rows) / math.log1p(-1 / rows)
    return max(0.0, 1 - used / ids)
