"""What is known of a recipe's numbers from its training rows: the JSON file of `features.statistics`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from prismrec.config import Recipe, UserError
from prismrec.data.source import resolve_filesystem

FORMAT = 1
_FIT = "write it by `prismrec data fit RECIPE`"


class NumberStatistics(BaseModel):
    """One number in the training rows.

    Args:
        column: where it was read from, in words.
        is_magnitude: what follows is of the number without its sign.
        values: how many there were.
        missing: rows without one.
        least: the least of them.
        most: the largest.
        mean: their mean.
        low: 0.1 % quantile.
        high: 99.9 % quantile.
        boundaries: numbers that part the values into groups of equal size, one fewer than groups;
            none where the encoding needs none.
        sample: values that the quantiles were taken from; all of them if there are as many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    is_magnitude: bool
    values: int
    missing: int
    least: float
    most: float
    mean: float
    low: float
    high: float
    boundaries: list[float]
    sample: int


class StatisticsFile(BaseModel):
    """The file.

    Args:
        format: version of its layout.
        data: fingerprint of the data set.
        where: conditions that the rows meet.
        rows: how many these are.
        numbers: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    data: str
    where: list[str]
    rows: int
    numbers: dict[str, NumberStatistics]


def needs_statistics(recipe: Recipe) -> bool:
    """Whether some number of a recipe is encoded by statistics."""
    return any(number.encoding.is_fitted for number in recipe.features.numbers)


def read_statistics(recipe: Recipe) -> dict[str, NumberStatistics]:
    """What the recipe's file says of the numbers that need it, by name.

    Raises:
        UserError: the file cannot be read, is no such file, or does not know a number.
    """
    path = recipe.features.statistics
    if path is None or not needs_statistics(recipe):
        return {}
    where = f"features.statistics: {path}"
    try:
        system, name = resolve_filesystem(path)
        with system.open_input_file(name) as stream:
            content = stream.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where} cannot be read ({reason}); {_FIT} or correct the path") from None
    try:
        file = StatisticsFile.model_validate_json(content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{where} holds no statistics of numbers ({place}); {_FIT}") from None
    if file.format != FORMAT:
        raise UserError(f"{where} is of format {file.format}, not {FORMAT}; {_FIT}")
    found: dict[str, Any] = {}
    for number in recipe.features.numbers:
        if number.encoding.is_fitted:
            if number.name not in file.numbers:
                raise UserError(f"{where} says nothing of the number '{number.name}'; {_FIT} again")
            found[number.name] = file.numbers[number.name]
    return found
