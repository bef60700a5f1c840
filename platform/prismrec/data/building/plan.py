"""The plan of a data set that is to be built: a TOML file, checked before a row is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from prismrec.config import ConfigError, nearest
from prismrec.config.explain import explained
from prismrec.config.read import read
from prismrec.config.section import Section
from prismrec.data.schema import Kind

ROW = "__row"
"""Column of numbers of rows in files that a build writes for itself."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class BuildColumn(Section):
    """What a column of the result is."""

    kind: Kind
    source: str | None = None
    """Column of the rows, or of a joined table, that it is made of; its own name if not given."""
    num_ids: int | None = Field(default=None, ge=1)
    """Of an `id` or `ids` column whose integers are ids from 0 already."""
    vocabulary: str | None = None
    """Of an `id` or `ids` column whose values, text or numbers, get ids from 0: the name of what gives
    them. Columns that name the same one share the ids."""
    description: str = ""

    @model_validator(mode="after")
    def _of_ids(self) -> BuildColumn:
        given = [name for name in ("num_ids", "vocabulary") if getattr(self, name) is not None]
        if given and self.kind not in ("id", "ids"):
            raise ValueError(f"{given[0]} belongs to the kinds 'id' and 'ids'")
        if len(given) == 2:
            raise ValueError("num_ids and vocabulary exclude each other: the vocabulary counts ids")
        return self


class VocabularyOptions(Section):
    """How values get ids."""

    min_count: int = Field(default=1, ge=1)
    """Values seen less often in the training rows get none and read as unknown."""


class Join(Section):
    """A table with one row for each key, whose columns are put beside the rows that have the key."""

    path: str
    """Directory of its Parquet files."""
    on: str
    """Column of the rows that holds keys."""
    key: str | None = None
    """Column of the table that holds keys, each once; `on` if not given."""
    columns: Annotated[tuple[str, ...], BeforeValidator(_tuple)]
    """Columns that are taken; null for rows whose key the table does not have."""
    prefix: str = ""
    """Put before their names, to tell them from others."""
    how: Literal["auto", "broadcast", "shuffle"] = "auto"
    """`broadcast`: every process holds the table. `shuffle`: rows and table are dealt out by key. `auto`
    broadcasts what takes no more than `broadcast_mib`."""

    @property
    def key_column(self) -> str:
        """Column of the table that holds keys."""
        return self.key or self.on

    @property
    def taken(self) -> tuple[str, ...]:
        """What the columns are called beside the rows."""
        return tuple(self.prefix + name for name in self.columns)


class TimeSplits(Section):
    """Rows by time: the first are for training, the next for validation, the last for the test."""

    valid_from: int | None = None
    """Time of the first validation rows."""
    test_from: int | None = None
    """Time of the first test rows."""
    valid: float | None = Field(default=None, gt=0, lt=1)
    """Share of the validation rows instead; rows of one time are never parted."""
    test: float | None = Field(default=None, gt=0, lt=1)
    """Share of the test rows instead."""

    @model_validator(mode="after")
    def _one_way(self) -> TimeSplits:
        times = [self.valid_from, self.test_from]
        shares = [self.valid, self.test]
        if any(x is not None for x in times) == any(x is not None for x in shares):
            raise ValueError("give either valid_from and test_from, or valid and test as shares")
        if None not in times and not times[0] < times[1]:  # type: ignore[operator]
            raise ValueError(f"valid_from = {times[0]} must be before test_from = {times[1]}")
        if sum(x or 0 for x in shares) >= 1:
            raise ValueError("valid and test together leave nothing for training; lower them")
        return self

    @property
    def times(self) -> tuple[int, ...]:
        """Times at which the later splits start, in their order; none where shares say it."""
        return tuple(each for each in (self.valid_from, self.test_from) if each is not None)


class BuildPlan(Section):
    """A data set to be built."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Name of the data set."""
    rows: str
    """Directory of the Parquet files whose rows it has, or its URL."""
    source: str = ""
    """Where the rows come from and under which terms, for `schema.json`."""
    columns: dict[str, BuildColumn] = Field(min_length=1)
    """Columns of the result, by name, in their order."""
    vocabularies: dict[str, VocabularyOptions] = Field(default_factory=dict)
    joins: Annotated[tuple[Join, ...], BeforeValidator(_tuple)] = ()
    splits: TimeSplits | None = None
    """How rows are parted; the parts become folders `split=train`, `split=valid` and `split=test`."""
    recipe: str | None = None
    """A recipe that will train on the result: its vocabularies and the statistics of its numbers are
    fitted to its training rows, and become a part of the data set."""
    row_group_mib: int = Field(default=96, ge=1, le=1024)
    """Decoded size of a row group, in MiB."""
    broadcast_mib: int = Field(default=256, ge=1)
    """Largest table, in MiB decoded, that `joins.how = "auto"` gives to every process."""

    @model_validator(mode="after")
    def _across(self) -> BuildPlan:
        problems = [*self._problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        used = {each.vocabulary for each in self.columns.values() if each.vocabulary}
        for name in set(self.vocabularies) - used:
            yield f"vocabularies.{name}: no column has this vocabulary; {nearest(name, used)}"
        times = [name for name, each in self.columns.items() if each.kind == "time"]
        if len(times) > 1:
            yield f"columns: {' and '.join(times)} are of kind 'time'; rows have one order, choose one"
        if self.splits is not None and not times:
            yield "splits: rows are parted by time; name the column with kind = 'time'"
        if self.splits is not None and "split" in self.columns:
            yield "columns.split: the folders of the splits give this column; choose another name"
        for index, join in enumerate(self.joins):
            twice = set(join.taken) & {c for other in self.joins[:index] for c in other.taken}
            if twice:
                yield (
                    f"joins[{index}]: {', '.join(sorted(twice))} is joined already; set a prefix"
                )

    @property
    def time(self) -> str | None:
        """Column of the result that holds the time."""
        found = (name for name, each in self.columns.items() if each.kind == "time")
        return next(found, None)

    def read_from(self, name: str) -> str:
        """The column that one of the result is made of."""
        return self.columns[name].source or name


def load_plan(path: Path) -> BuildPlan:
    """The plan in a TOML file.

    Raises:
        UserError: the file is missing or no TOML.
        ConfigError: everything that is wrong with the plan.
    """
    tree = read(path)
    try:
        return BuildPlan.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(str(path), explained(error, BuildPlan, tree)) from None
