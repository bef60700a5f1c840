"""Domains (scenarios) of rows, where a model or a loss tells them apart: 0 to S - 1, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prismrec.config import Recipe, UserError
from prismrec.data.rows import Ints
from prismrec.data.schema import DataSchema
from prismrec.data.values import NO_KEY


@dataclass(frozen=True)
class Domains:
    """The domains of a data set.

    Args:
        column: column that names a row's.
        count: number S of them.
        unknown: domain of the rows that name none of them; None where there may be no such row.
    """

    column: str
    count: int
    unknown: int | None

    def known(self, ids: Ints, where: Callable[[int], str]) -> Ints:
        """The domains of rows, each of them 0 to S - 1.

        Args:
            ids: (B,) as the column has them, `NO_KEY` for a missing one.
            where: names a row, by its position, in an error.

        Raises:
            UserError: a row names none of the domains, and `unknown` is None.
        """
        outside = (ids < 0) | (ids >= self.count)
        if not outside.any():
            return ids
        if self.unknown is not None:
            return np.where(outside, self.unknown, ids)
        row = int(np.flatnonzero(outside)[0])
        found = "no domain" if ids[row] == NO_KEY else f"domain {ids[row]}"
        raise UserError(
            f"{where(row)}: column '{self.column}' names {found}, but the domains are 0 to "
            f"{self.count - 1}; correct the data, or let features.unknown_domain say which of them "
            "such rows belong to"
        )


def domains_of(recipe: Recipe, schema: DataSchema) -> Domains | None:
    """The domains that a recipe's model or loss tells apart; None if neither does.

    Raises:
        UserError: the column does not say how many there are, or `features.unknown_domain` is none
            of them.
    """
    if not recipe.needs_domain:
        return None
    name, unknown = recipe.features.domain, recipe.features.unknown_domain
    assert name is not None
    count = schema.column(name, ("id",), "features.domain").num_ids
    if count is None:
        raise UserError(
            f"features.domain: column '{name}' has no num_ids, and a model that tells domains apart "
            "needs their number; number the domains from 0 and write num_ids into schema.json"
        )
    if unknown is not None and unknown >= count:
        raise UserError(
            f"features.unknown_domain: the domains of column '{name}' are 0 to {count - 1}, got "
            f"{unknown}; choose one of them"
        )
    return Domains(name, count, unknown)
