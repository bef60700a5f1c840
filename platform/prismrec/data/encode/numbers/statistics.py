"""What is known of a recipe's numbers from its training rows: the JSON file of `features.statistics`."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from prismrec.config import Recipe, UserError
from prismrec.data.source import resolve_filesystem

FORMAT = 1
_FIT = "write it by `prismrec data fit RECIPE`"


class NumberStatistics(BaseModel):
    """One number in the training rows.

    Args:
        source: where it was read from, in words.
        is_magnitude: what follows is of the number without its sign.
        values: finite ones.
        missing: rows without one.
        infinite: rows with an infinite one.
        least: the least of the values.
        most: the largest.
        mean: their mean.
        low: 0.1 % quantile.
        high: 99.9 % quantile.
        shares: shares of the values whose quantiles follow, as the encoding needs them.
        quantiles: for each share a value that it does not exceed.
        sample: values that the quantiles were taken from; all of them if there are as many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    is_magnitude: bool
    values: int
    missing: int
    infinite: int
    least: float
    most: float
    mean: float
    low: float
    high: float
    shares: list[float]
    quantiles: list[float]
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
        UserError: the file cannot be read, is no such file, is of other rows than those that the
            recipe trains on, or does not know a number as it is encoded.
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
    rows = recipe.data.splits.train
    if tuple(file.where) != rows:
        raise UserError(
            f"{where} is of the rows {file.where}, but data.splits.train has {list(rows)}; {_FIT} "
            "again, so that it knows nothing of the other rows"
        )
    found: dict[str, NumberStatistics] = {}
    for number in recipe.features.numbers:
        if number.encoding.is_fitted:
            known = file.numbers.get(number.name)
            if known is None:
                raise UserError(f"{where} says nothing of the number '{number.name}'; {_FIT} again")
            wanted = number.encoding
            if tuple(known.shares) != wanted.shares or known.is_magnitude != wanted.is_magnitude:
                raise UserError(
                    f"{where} was written for another encoding of '{number.name}'; {_FIT} again"
                )
            found[number.name] = known
    return found
