"""Recipe sections that say what is read and which columns mean what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prismrec.config.numbers import MARK, NumberFeature
from prismrec.config.objectives import Jrc, LossSection, loss_of
from prismrec.config.propensity import Propensity
from prismrec.config.section import Section
from prismrec.config.sequences import SequenceFeature


class Splits(Section):
    """Row filters; each is a list of conditions `column op literal`, all of which must hold.

    Operators are ==, !=, <, <=, >, >=. Strings stand in single quotes. No condition takes every row.
    """

    train: tuple[str, ...] = ()
    """Rows to train on."""
    valid: tuple[str, ...] | None = None
    """Rows evaluated during training; without it there is no evaluation during training."""
    test: tuple[str, ...] | None = None
    """Rows evaluated once at the end."""

    @field_validator("train", "valid", "test", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class DataSection(Section):
    """Where the rows are and how they reach the ranks."""

    path: str
    """A directory of Parquet files with a `schema.json`, local or any fsspec URL."""
    global_batch_size: int = Field(default=4096, ge=1)
    """Rows of one step over all ranks; a multiple of `lanes`."""
    lanes: int = Field(default=8, ge=1)
    """Pieces of equal size the rows are cut into; a multiple of every world size the run may take."""
    order: Literal["shuffle", "file", "time"] = "shuffle"
    """Training order: shuffled by seed and epoch, as the files lie, or by the schema's time column."""
    shuffle_rows: int = Field(default=65_536, ge=1)
    """Rows of the shuffle buffer of one lane."""
    open_lanes: int = Field(default=16, ge=1)
    """Most row groups one rank may hold decoded; at least the lanes of a rank."""
    prefetch: int = Field(default=4, ge=1)
    """Batches made ahead of the step, per rank."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What a row group that cannot be decoded does: `fail` ends the run, `skip` puts as many rows that
    count for nothing in its place. A file whose end cannot be read is left out as a whole."""
    splits: Splits = Splits()


def _feature(value: Any) -> Any:
    """A bare column name stands for a feature of that name."""
    return {"name": value} if isinstance(value, str) else value


class SparseFeature(Section):
    """A feature that looks rows up in a table: one id, or a bag of ids, per example."""

    name: str
    """Name of the feature (a field of the model)."""
    column: str | None = None
    """Column it is read from; its name if not given."""
    table: str | None = None
    """Table it looks up; features naming the same table share it. Its column if not given. A name
    without `.`, `/` and `__`."""
    pooling: Literal["sum", "mean"] = "sum"
    """How a bag of several ids becomes one vector."""
    weights: str | None = None
    """List column parallel to the ids, with a weight for each of them."""

    @property
    def source(self) -> str:
        """The column that holds the ids."""
        return self.column or self.name

    @property
    def table_name(self) -> str:
        """The table that the ids look up."""
        return self.table or self.source


class Lookup(Protocol):
    """A field of the model that is looked up in a table: a sparse feature, or a part of a number."""

    @property
    def name(self) -> str:
        """Name of the field."""

    @property
    def table_name(self) -> str:
        """The table that it looks up."""

    @property
    def pooling(self) -> Literal["sum", "mean"]:
        """How the rows of a bag become one vector."""

    @property
    def weights(self) -> str | None:
        """List column with a weight for each id, if there is one."""


class IdLists(NamedTuple):
    """Ids that look up a table: their key in the batch, their column and the table."""

    key: str
    column: str
    table: str


class FeaturesSection(Section):
    """The columns of the data set that the model sees."""

    sparse: tuple[Annotated[SparseFeature, BeforeValidator(_feature)], ...]
    """Id features: a name, or `{name=..., column=..., table=..., pooling=..., weights=...}`."""
    dense: tuple[str, ...] = ()
    """Numeric columns; a missing value reads as 0."""
    numbers: tuple[Annotated[NumberFeature, BeforeValidator(_feature)], ...] = ()
    """Numbers with an encoding: a column, or `{name=..., column=..., encoding=...}`."""
    statistics: str | None = None
    """JSON file with the ranges and quantiles of the numbers in the training rows, as
    `prismrec data fit` writes it; a path or URL that every rank can read. Checkpoints and the
    exported model hold a copy."""
    group: str | None = None
    """Column whose values are the groups of GAUC (user or request)."""
    domain: str | None = None
    """Column that names the domain (scenario) of a row; metrics are also given by domain."""
    unknown_domain: int | None = Field(default=None, ge=0)
    """Domain that rows belong to whose domain is missing or is none of the data set's, wherever a
    model or a loss tells domains apart; without it such a row ends a run, and a request, with an error."""
    time: str | None = None
    """Column with the time of a row; required by `data.order = "time"`, and by sequences with `times`."""
    sequences: tuple[SequenceFeature, ...] = ()
    """What happened before a row, in order, for models that read it (`model.sequence`)."""

    @property
    def columns(self) -> list[str]:
        """Raw columns that the features are made of, each once: ids, weights, numbers, sequences."""
        names = [feature.source for feature in self.sparse]
        names += [feature.weights for feature in self.sparse if feature.weights]
        names += [column for number in self.numbers for column in number.columns]
        names += [*self.dense, *(name for each in self.sequences for name in each.columns)]
        if self.time is not None and any(each.times for each in self.sequences):
            names.append(self.time)
        return list(dict.fromkeys(names))

    @property
    def numeric(self) -> tuple[str, ...]:
        """The numeric columns of a batch: `dense`, then the numbers that modules of the model read."""
        read = (each.name for each in self.numbers if not each.encoding.is_looked_up)
        return (*self.dense, *read)

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Every field that is looked up, in the order of the model's fields: ids, then numbers."""
        return (*self.sparse, *(each for number in self.numbers for each in number.lookups))

    @property
    def behaviours(self) -> list[IdLists]:
        """The columns of behaviours of all sequences."""
        tables = {feature.name: feature.table_name for feature in self.sparse}
        return [
            IdLists(sequence.key(each), each.column, tables[each.target])
            for sequence in self.sequences
            for each in sequence.behaviours
            if each.target in tables  # the recipe is refused otherwise
        ]

    @property
    def id_lists(self) -> list[IdLists]:
        """Everything whose ids look up tables: the sparse features, then the columns of behaviours."""
        of_sparse = [IdLists(each.name, each.source, each.table_name) for each in self.sparse]
        return of_sparse + self.behaviours

    @property
    def sequence_tables(self) -> frozenset[str]:
        """Tables that behaviours look up, and their targets beside them."""
        return frozenset(each.table for each in self.behaviours)

    @field_validator("sparse", "dense", "numbers", "sequences", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("sparse")
    @classmethod
    def _names(cls, value: tuple[SparseFeature, ...]) -> tuple[SparseFeature, ...]:
        if not value:
            raise ValueError("at least one sparse feature is needed")
        names = [feature.name for feature in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value

    @model_validator(mode="after")
    def _across_features(self) -> FeaturesSection:
        problems = [*_number_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _number_problems(features: FeaturesSection) -> Iterator[str]:
    """Names that could not be told apart, rows that do not fit, and statistics that are missing."""
    taken = {feature.name for feature in features.sparse}
    if features.numbers:
        yield from (
            f"sparse[{index}].name: '{MARK}' parts the fields of a number, got '{feature.name}'"
            for index, feature in enumerate(features.sparse)
            if MARK in feature.name
        )
    shared: dict[str, tuple[object, ...]] = {}
    for index, number in enumerate(features.numbers):
        where = f"numbers[{index}]"
        if not number.name or MARK in number.name:
            yield f"{where}.name: not empty and without '{MARK}', got '{number.name}'"
        if number.name in taken:
            yield f"{where}.name: another feature is called '{number.name}'; choose another name"
        taken.add(number.name)
        if number.share is not None and not number.encoding.is_looked_up:
            yield f"{where}.share: '{number.encoding.kind}' looks no rows up; leave it out"
        if number.name in features.dense and not number.encoding.is_looked_up:
            yield f"{where}.name: features.dense has '{number.name}' too; choose another name"
        form = shared.setdefault(number.rows_of, number.encoding.form)
        if form != number.encoding.form:
            yield (
                f"{where}.share: rows can be shared by numbers of one kind, levels, widths and mode; "
                f"those of '{number.rows_of}' differ"
            )
    fitted = [number.name for number in features.numbers if number.encoding.is_fitted]
    if fitted and features.statistics is None:
        yield (
            f"statistics: missing; '{fitted[0]}'{_more(fitted)} is encoded by the statistics of the "
            "training rows: name the file that `prismrec data fit RECIPE` is to write, or give the "
            "range with a quantiser that needs nothing else"
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


class Task(Section):
    """One label to predict."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Name of the task in metrics and predictions."""
    label: str
    """Label column, 0 or 1; null means that the row has no label for this task."""
    valid: str | None = None
    """Column that is 1 where the row belongs to the task's sample space (as clicks do for conversion)."""
    loss: str | LossSection = "bce"
    """`bce`, `package.module:function` from logits and labels to the loss of each row, or
    `{name = ..., ...}` of those below."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the task's loss in the total."""
    pos_weight: float = Field(default=1.0, gt=0)
    """Weight of the positives in training; logits are put right for it everywhere else."""
    negative_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of negatives kept in training; logits are put right for it everywhere else."""

    propensity: Propensity | None = None
    """Weights against repeated exposure; none if not given."""

    @field_validator("loss", mode="before")
    @classmethod
    def _loss(cls, value: Any) -> str | LossSection:
        return loss_of(value)

    @property
    def has_level(self) -> bool:
        """Whether the model gives a second logit for the task, which is taken off the first."""
        return isinstance(self.loss, Jrc)

    @property
    def logit_offset(self) -> float:
        """What to add to a trained logit to undo the sampling and weighting: ln r - ln w.

        Keeping a share r of the negatives makes the odds in training 1/r times the true odds, and
        positives of weight w make them w times those.
        """
        return math.log(self.negative_rate) - math.log(self.pos_weight)
