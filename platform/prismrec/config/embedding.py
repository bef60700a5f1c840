"""Recipe sections of the embedding tables: sets, widths, placement, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prismrec.config.ids import (
    DirectIds,
    HashedIds,
    IdOptions,
    ManagedIds,
    SemanticIds,
    VocabularyIds,
)
from prismrec.config.numbers import MARK
from prismrec.config.section import Section

ShardingKind = Literal[
    "auto",
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid",
]
Layout = Literal["auto", "packed", "separate", "spread"]
Kernel = Literal["auto", "fused", "fused_uvm", "fused_uvm_caching"]
DataType = Literal["fp32", "fp16"]
WireType = Literal["fp32", "fp16", "bf16", "int8"]
RESERVED_MEMORY = 0.15
MAX_WIDTH = 1024
"""FBGEMM returns zeros, without a word, for rows wider than this."""


COUPLING_OPTIMIZERS = ("rowwise_adagrad", "partial_rowwise_adam", "lamb")
"""Optimizers with one number for a whole row: packed sets change each other's steps."""

_ADAM_OPTIONS = ("eps", "beta1", "beta2", "weight_decay")
KERNEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("eps",),
    "rowwise_adagrad": ("eps", "weight_decay", "max_norm"),
    "adam": _ADAM_OPTIONS,
    "lamb": _ADAM_OPTIONS,
    "partial_rowwise_adam": _ADAM_OPTIONS,
}
"""Options that FBGEMM's CUDA kernel of a rule reads, besides the learning rate and `clip`, which all
of them read; it takes the others too, and ignores them. The CPU kernels read `eps` at most."""


def check_width(width: int) -> int:
    """A width that FBGEMM's kernels can hold in one shard.

    Raises:
        ValueError: the width is not a multiple of 4 in 4..1024.
    """
    if width % 4 or not 4 <= width <= MAX_WIDTH:
        low = max(4, min(MAX_WIDTH, width // 4 * 4))
        raise ValueError(
            f"a width must be a multiple of 4 between 4 and {MAX_WIDTH}, got {width}; "
            f"the nearest are {low} and {min(MAX_WIDTH, low + 4)}"
        )
    return width


class TableOptimizer(Section):
    """The optimizer of the tables, applied inside backward."""

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam"] = (
        "adagrad"
    )
    """The last three train on CUDA only; but for `adam` in tables with sharding = 'data_parallel'."""
    learning_rate: float = Field(default=0.05, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    """Keeps the divisor above zero; not for `sgd`."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old first moment; for `adam`, `lamb` and `partial_rowwise_adam`."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Share of the old second moment; for the same three."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Share of a row, times the learning rate, that each of its updates takes off; not for `sgd` and
    `adagrad`, and on CUDA only, but for `adam` in tables with sharding = 'data_parallel'."""
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute value of each number of the gradient of a bag's vector; larger ones are cut to
    it, before the bags that hold a row are added up."""
    max_norm: float | None = Field(default=None, gt=0)
    """Largest length of a row; longer ones are scaled down after their update. For `rowwise_adagrad`,
    on CUDA only."""

    @model_validator(mode="after")
    def _heard(self) -> TableOptimizer:
        fields = type(self).model_fields
        for option in sorted({each for options in KERNEL_OPTIONS.values() for each in options}):
            is_set = getattr(self, option) != fields[option].default
            if is_set and option not in KERNEL_OPTIONS[self.name]:
                have = [name for name, options in KERNEL_OPTIONS.items() if option in options]
                raise ValueError(
                    f"the kernels of {self.name} ignore {option}; leave it out, or use "
                    + " or ".join(have)
                )
        return self


class SetOptions(Section):
    """One embedding set: a vector of `dim` numbers for every id of every feature it covers."""

    name: str
    dim: int
    """Width, a multiple of 4."""
    features: tuple[str, ...] | None = None
    """Sparse features and numbers that have a vector in this set; all of them if not given."""
    init_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the initial weights; `embedding.init_std` if not given."""
    data_type: DataType | None = None
    """Type of the stored weights; the table's if not given."""
    pooling: Literal["sum", "mean"] | None = None
    """How a bag becomes one vector in this set; the feature's if not given."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Overrides the learning rate of the optimizer."""
    optimizer: TableOptimizer | None = None
    """Overrides the optimizer of the tables as a whole."""

    @field_validator("dim")
    @classmethod
    def _dim(cls, value: int) -> int:
        return check_width(value)

    @field_validator("features", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def covers(self, feature: str) -> bool:
        """Whether a field has a vector in this set."""
        return covered(self.features, feature)


def covered(features: tuple[str, ...] | None, field: str) -> bool:
    """Whether a list of features, None for all, names a field or the number that it belongs to.

    >>> covered(("price",), "price::b2"), covered(("price::b3",), "price::b2")
    (True, False)
    """
    return features is None or field in features or field.partition(MARK)[0] in features


CPU_OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
"""Rules that FBGEMM has kernels for on CPU."""


def cpu_problem(optimizer: TableOptimizer, sharding: str, where: str) -> str | None:
    """Why an optimizer cannot train a table on CPU, in a sentence; None where it can.

    Args:
        optimizer: rule and options.
        sharding: how the table is placed; only `data_parallel` ones do without FBGEMM's kernels.
        where: key of the recipe that gives the optimizer.
    """
    if optimizer.name == "adam" and sharding == "data_parallel":
        return None
    if optimizer.name not in CPU_OPTIMIZERS:
        less = (
            "; small tables can have adam with sharding = 'data_parallel'"
            if optimizer.name == "adam"
            else ""
        )
        return (
            f"{where}.name: '{optimizer.name}' is not supported in CPU mode; on CPU there are "
            + ", ".join(CPU_OPTIMIZERS)
            + less
        )
    if optimizer.weight_decay > 0:
        return (
            f"{where}.weight_decay: the CPU kernels ignore weight decay; set it to 0 or train on "
            "CUDA"
        )
    if optimizer.max_norm is not None:
        return (
            f"{where}.max_norm: the CPU kernels ignore the largest length; leave it out or train on "
            "CUDA"
        )
    return None


class Pretrained(Section):
    """Vectors that a set of a table starts with instead of drawn ones."""

    set: str
    """The set that takes them."""
    path: str
    """A Parquet file, or a directory of them, with a column `id` and a column `vector` of as many
    numbers as the set is wide, as `prismrec tables export` writes it. Rows of ids that are not in it
    start as drawn."""
    scale: float = 1.0
    """What every number is multiplied by."""


class TableOptions(Section):
    """What one table does differently from the rest."""

    rows: int | None = Field(default=None, ge=1)
    """Rows for known ids, for `quotient_remainder` the number of known ids; the schema's count if
    not given. `hash` and `managed` need it; `vocabulary` and `semantic` take theirs from the file."""
    ids: IdOptions = DirectIds()
    """How ids become rows: the name of a kind, or `{kind=..., ...}`."""
    unknown_rows: int = Field(default=1, ge=1)
    """Rows after those, for ids that have none of their own. A missing id looks up the last of them;
    any other unknown id one of the rest, if there are more, by a hash."""
    layout: Layout | None = None
    """Overrides `embedding.layout`."""
    sharding: ShardingKind | None = None
    """Overrides `embedding.sharding`."""
    kernel: Kernel | None = None
    """Overrides `embedding.kernel`."""
    data_type: DataType | None = None
    """Overrides `embedding.data_type`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Overrides the learning rate of the table's optimizer."""
    optimizer: TableOptimizer | None = None
    """Overrides `embedding.optimizer` as a whole."""
    ids_per_row: float | None = Field(default=None, gt=0)
    """Ids of one row of the data over all features of the table, for the planner's estimates; one
    for each feature if not given."""
    pretrained: tuple[Pretrained, ...] = ()
    """Vectors to start with: `[{set="set0", path="vectors.parquet"}]`."""

    @field_validator("pretrained", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("pretrained")
    @classmethod
    def _each_set_once(cls, value: tuple[Pretrained, ...]) -> tuple[Pretrained, ...]:
        names = [each.set for each in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sets named twice: {', '.join(twice)}; one file fills a set")
        return value


def row_problem(options: TableOptions) -> str | None:
    """Why a table's numbers of rows do not fit its kind of ids, from the key on; None if they do."""
    ids = options.ids
    if options.rows is None and isinstance(ids, HashedIds | ManagedIds):
        return f"rows: missing; a table with ids = '{ids.kind}' has as many rows as you say"
    if options.rows is not None and isinstance(ids, VocabularyIds):
        return "rows: a table with a vocabulary has a row for each of its ids; leave `rows` out"
    if options.rows is not None and isinstance(ids, SemanticIds):
        return "rows: a table of semantic ids has a row for each gram; use ids.max_rows"
    if options.unknown_rows == 1:
        return None
    if isinstance(ids, HashedIds):
        return "unknown_rows: a hash finds a row for every id but a missing one; leave it at 1"
    if isinstance(ids, DirectIds) and ids.out_of_range == "fail":
        return (
            "unknown_rows: with out_of_range = 'fail' only a missing id is unknown; leave it at 1"
        )
    return None


def number_table_problems(name: str, options: TableOptions) -> Iterator[str]:
    """Why a table of numbers cannot have its options, each in a sentence; nothing if it can."""
    defaults = TableOptions()
    for key in ("rows", "ids", "unknown_rows", "ids_per_row", "pretrained"):
        if getattr(options, key) != getattr(defaults, key):
            yield (
                f"embedding.tables.{name}.{key}: the rows of this table are the digits of numbers, "
                "not ids; leave it out"
            )


class Communication(Section):
    """Types in which vectors and their gradients travel between ranks."""

    forward: WireType = "fp32"
    """Type of pooled vectors on their way to the rows' ranks."""
    backward: WireType = "fp32"
    """Type of gradients on their way to the tables' ranks."""


def wire_problem(communication: Communication, batch_size: int) -> str | None:
    """Why a rank's batch cannot travel in these types, in a sentence; None where it can.

    Args:
        communication: the types.
        batch_size: rows of one rank's batch. 32 numbers share a range in int8, and widths are
            multiples of 4.
    """
    if "int8" in (communication.forward, communication.backward) and batch_size % 8:
        return (
            "embedding.communication: int8 needs a multiple of 8 rows in the batch of a rank, which "
            f"has {batch_size}; change data.global_batch_size or workers.count, or use fp16 or bf16"
        )
    return None


class EmbeddingSection(Section):
    """Embedding sets, and how they lie in memory and on the ranks."""

    dim: int = 16
    """Width of every set, where `sets` is not given."""
    num_sets: int = Field(default=1, ge=1)
    """Number of equal sets, where `sets` is not given."""
    sets: tuple[SetOptions, ...] = ()
    """The sets one by one, of any widths: `[{name="wide", dim=32}, {name="narrow", dim=8}]`."""
    layout: Layout = "packed"
    """`packed`: one row of all sets' widths per id; `separate`: a table for each set; `spread`:
    packed, and cut between sets so that each can go to a rank of its own; `auto`: the
    planner's choice for each table."""
    sharding: ShardingKind = "auto"
    """Where a table's parts go; `auto` leaves it to the planner."""
    kernel: Kernel = "auto"
    """Where a table lies on CUDA: `fused` in device memory, `fused_uvm` in host memory,
    `fused_uvm_caching` in host memory with a cache on the device; `auto` in device memory if all
    tables fit there, else where the planner puts it. On CPU there is only `fused`."""
    cache_load_factor: float = Field(default=0.2, gt=0, le=1)
    """Share of a `fused_uvm_caching` table's rows that its cache holds; on CUDA only."""
    reserved_memory: float = Field(default=RESERVED_MEMORY, ge=0, lt=1)
    """Share of a rank's memory, on its device and on its machine, that the planner leaves to dense
    weights, batches and buffers."""
    communication: Communication = Communication()
    """`[embedding.communication]`: types on the wire."""
    ranks_per_copy: int | None = Field(default=None, ge=1)
    """Ranks that hold the tables together, where the world is large: each further group of as many
    ranks holds a copy, and the copies are averaged every `sync_every` steps. One copy if not given."""
    sync_every: int = Field(default=1, ge=1)
    """Steps between two averages of the copies; evaluations and checkpoints average them too."""
    data_type: DataType = "fp32"
    """Type of the stored weights."""
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the initial weights."""
    allow_coupled_sets: bool = False
    """Let packed sets share one row-wise accumulator: a strong set then slows the others. Also lets
    a table with such accumulators be cut by columns, each piece with accumulators of its own."""
    track_touched: bool = False
    """Keep the step that touched each row last, 4 bytes a row, so that `prismrec tables delta` can
    write the rows of the steps since another."""
    optimizer: TableOptimizer = TableOptimizer()
    tables: dict[str, TableOptions] = Field(default_factory=dict)
    """`[embedding.tables.NAME]`: options of one table."""

    @field_validator("dim")
    @classmethod
    def _dim(cls, value: int) -> int:
        return check_width(value)

    @field_validator("sets", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _sets_once(self) -> EmbeddingSection:
        if self.sets and self.model_fields_set & {"dim", "num_sets"}:
            raise ValueError("give either `sets` or `dim` and `num_sets`, not both")
        return self

    @property
    def resolved_sets(self) -> tuple[SetOptions, ...]:
        """The sets, whichever way they were written."""
        if self.sets:
            return self.sets
        return tuple(SetOptions(name=f"set{m}", dim=self.dim) for m in range(self.num_sets))
