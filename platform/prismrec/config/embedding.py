"""Recipe sections of the embedding tables: sets, widths, placement, optimizer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prismrec.config.ids import DirectIds, IdOptions
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
MAX_WIDTH = 1024
"""FBGEMM returns zeros, without a word, for rows wider than this."""


COUPLING_OPTIMIZERS = ("rowwise_adagrad", "partial_rowwise_adam", "lamb")
"""Optimizers with one number for a whole row: packed sets change each other's steps."""


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
    learning_rate: float = Field(default=0.05, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=None, gt=0)
    """Largest absolute value of each number of a row's gradient; larger ones are cut to it."""
    max_norm: float | None = Field(default=None, gt=0)
    """Largest length of a row; longer ones are scaled down after their update."""


class SetOptions(Section):
    """One embedding set: a vector of `dim` numbers for every id of every feature it covers."""

    name: str
    dim: int
    """Width, a multiple of 4."""
    features: tuple[str, ...] | None = None
    """Sparse features that have a vector in this set; all of them if not given."""
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


CPU_OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
"""Rules that FBGEMM has kernels for on CPU."""


def cpu_problem(optimizer: TableOptimizer, table: str) -> str | None:
    """Why a table cannot be trained by an optimizer on CPU, in a sentence; None where it can."""
    if optimizer.name not in CPU_OPTIMIZERS:
        return (
            f"embedding.optimizer.name: '{optimizer.name}' is not supported in CPU mode (table "
            f"'{table}'); on CPU there are {', '.join(CPU_OPTIMIZERS)}"
        )
    if optimizer.weight_decay > 0:
        return (
            f"embedding.optimizer.weight_decay: the CPU kernels ignore weight decay (table "
            f"'{table}'); set it to 0 or train on CUDA"
        )
    if optimizer.max_norm is not None:
        return (
            f"embedding.optimizer.max_norm: the CPU kernels ignore the largest length (table "
            f"'{table}'); leave it out or train on CUDA"
        )
    return None


class TableOptions(Section):
    """What one table does differently from the rest."""

    rows: int | None = Field(default=None, ge=1)
    """Rows for known ids (one more is added for unknown ones); the schema's count if not given."""
    hash_ids: bool = False
    """Fold ids of any value into `rows` by a seeded hash, instead of sending large ones to the unknown row."""
    ids: IdOptions = DirectIds()
    """How ids become rows: a kind, or `{kind=..., ...}`."""
    unknown_rows: int = Field(default=1, ge=1)
    """Rows for ids that have none of their own; a missing id looks up the last of them."""
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


class Communication(Section):
    """Types in which vectors and their gradients travel between ranks."""

    forward: WireType = "fp32"
    """Type of pooled vectors on their way to the rows' ranks."""
    backward: WireType = "fp32"
    """Type of gradients on their way to the tables' ranks."""


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
    `fused_uvm_caching` in host memory with a cache on the device; on CPU there is only `fused`."""
    cache_load_factor: float = Field(default=0.2, gt=0, le=1)
    """Share of a `fused_uvm_caching` table's rows that its cache holds."""
    communication: Communication = Communication()
    """`[embedding.communication]`: types on the wire."""
    ranks_per_copy: int | None = Field(default=None, ge=1)
    """Ranks that hold the tables together, where the world is large: each further group of as many
    ranks holds a copy, and the copies are averaged every `sync_every` steps. One copy if not given."""
    sync_every: int = Field(default=1, ge=1)
    """Steps between two averages of the copies."""
    data_type: DataType = "fp32"
    """Type of the stored weights."""
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the initial weights."""
    allow_coupled_sets: bool = False
    """Let packed sets share one row-wise accumulator: a strong set then slows the others."""
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
        names = [options.name for options in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sets named twice: {', '.join(twice)}")
        if "linear" in names:
            raise ValueError("the set name 'linear' is taken by the first-order weights")
        coupling = self.optimizer.name in COUPLING_OPTIMIZERS
        alike = [s for s in self.resolved_sets if s.optimizer is None and s.learning_rate is None]
        packed = self.layout in ("packed", "spread") and len(alike) > 1
        if coupling and packed and not self.allow_coupled_sets:
            raise ValueError(
                f"{self.optimizer.name} scales a row as a whole, which couples packed sets; "
                "use layout = 'separate', optimizer.name = 'adagrad', or allow_coupled_sets = true"
            )
        return self

    @property
    def resolved_sets(self) -> tuple[SetOptions, ...]:
        """The sets, whichever way they were written."""
        if self.sets:
            return self.sets
        return tuple(SetOptions(name=f"set{m}", dim=self.dim) for m in range(self.num_sets))
