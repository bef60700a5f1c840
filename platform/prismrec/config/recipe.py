"""The recipe: everything a run depends on, in one typed tree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

from pydantic import Field, field_validator, model_validator

from prismrec.config.calibration import CalibrationSection
from prismrec.config.data import DataSection, FeaturesSection, Task
from prismrec.config.domains import domain_problems, phase_problems
from prismrec.config.embedding import (
    EmbeddingSection,
    TableOptimizer,
    TableOptions,
    cpu_problem,
    number_table_problems,
    row_problem,
    wire_problem,
)
from prismrec.config.errors import nearest
from prismrec.config.ids import ManagedIds
from prismrec.config.managed import managed_problems
from prismrec.config.models import BUILT_IN, Custom
from prismrec.config.models.base import Common
from prismrec.config.models.interactions import part_problems
from prismrec.config.models.sequence import module_problems
from prismrec.config.objectives import objective_problems
from prismrec.config.online import OnlineSection, online_problems
from prismrec.config.placement import placement_problems
from prismrec.config.section import Section
from prismrec.config.sequence_tables import sequence_problems
from prismrec.config.sets import linear_set, set_problems
from prismrec.config.train import (
    CheckpointSection,
    EvaluateSection,
    ExportSection,
    TrackingSection,
    TrainSection,
    WorkersSection,
)


class Recipe(Section):
    """A run: data, features, tables, model, tasks and how to train them."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][\w.-]*$")
    """Name of the run and, unless `tracking.registry_name` says otherwise, of the registered model."""
    seed: int = Field(default=1, ge=0)
    """Seed of the data order and of every initial weight."""
    out: str = "out/runs"
    """Directory that holds the run directories."""
    data: DataSection
    features: FeaturesSection
    embedding: EmbeddingSection = EmbeddingSection()
    model: Section
    """`name` and the fields of that model."""
    tasks: tuple[Task, ...]
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    calibration: CalibrationSection | None = None
    """`[calibration]`: how logits are put right when training has ended; not at all if not given."""
    online: OnlineSection | None = None
    """`[online]`: windows of a stream, for `prismrec online`."""
    export: ExportSection = ExportSection()
    workers: WorkersSection = WorkersSection()

    @field_validator("model", mode="plain")
    @classmethod
    def _model(cls, value: Any) -> Section:
        if isinstance(value, Section):
            return value
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError("needs a name; " + nearest("", BUILT_IN))
        name = value["name"]
        if ":" in name:
            return Custom.model_validate(value)
        if name not in BUILT_IN:
            raise ValueError(f"unknown model '{name}'; {nearest(name, BUILT_IN)}")
        return BUILT_IN[name].model_validate(value)

    @field_validator("tasks", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: tuple[Task, ...]) -> tuple[Task, ...]:
        names = [task.name for task in value]
        if not names:
            raise ValueError("at least one task is needed")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value

    @model_validator(mode="after")
    def _across_sections(self) -> Recipe:
        problems = [
            *_lane_problems(self),
            *_name_problems(self),
            *_number_table_names(self),
            *_set_problems(self),
            *_table_problems(self),
            *sequence_problems(self.features, self.embedding),
            *_module_problems(self),
            *_device_problems(self),
            *_cache_problems(self),
            *_rank_problems(self),
            *_column_problems(self),
            *_part_problems(self),
            *objective_problems(
                [task.loss for task in self.tasks], self.task_names, self.features.group
            ),
            *domain_problems(self.features, needs_domain=self.needs_domain),
            *phase_problems(self.train, self.model),
            *online_problems(
                self.online, self.features, track_touched=self.embedding.track_touched
            ),
            *(self.model.problems(self) if isinstance(self.model, Common) else ()),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the logits' columns."""
        return tuple(task.name for task in self.tasks)

    @property
    def num_logits(self) -> int:
        """Columns that the model gives: a logit per task, then the levels of tasks that have one."""
        return len(self.tasks) + sum(task.has_level for task in self.tasks)

    @property
    def reads_domain(self) -> bool:
        """Whether the model tells the domains of rows apart, and so is served with them."""
        return bool(getattr(self.model, "reads_domain", False))

    @property
    def needs_domain(self) -> bool:
        """Whether the model or the loss tells the domains of rows apart."""
        return self.reads_domain or self.train.domain_reduction != "global_mean"

    @property
    def chains_labels(self) -> bool:
        """Whether a row may have a task's label only with that of the task before it."""
        return bool(getattr(self.model, "strict_labels", False))

    @property
    def raw_columns(self) -> list[str]:
        """Raw columns that the model is served with, each once."""
        columns = self.features.columns
        if self.reads_domain and self.features.domain:
            columns.append(self.features.domain)
        for task in self.tasks:
            if task.propensity is not None and task.propensity.undo:
                columns += task.propensity.columns
        return list(dict.fromkeys(columns))

    @property
    def registered_name(self) -> str | None:
        """The model's name in the registry, or None when it is not registered."""
        chosen = self.tracking.registry_name
        return self.name if chosen is None else chosen or None

    def best_metric(self) -> str:
        """The metric that picks the best checkpoint, such as `click/auc`."""
        return self.evaluate.metric or f"{self.tasks[0].name}/auc"


def lanes_for(world_size: int, lanes: int, batch: int) -> tuple[int, int]:
    """The next number of lanes that `world_size` divides, and the next batch size those lanes divide.

    >>> lanes_for(3, 8, 4096)
    (9, 4104)
    """
    next_lanes = -(-lanes // world_size) * world_size
    return next_lanes, -(-batch // next_lanes) * next_lanes


def _lane_problems(recipe: Recipe) -> list[str]:
    data, counts = recipe.data, recipe.workers.counts
    lanes, batch = lanes_for(math.lcm(*counts), data.lanes, data.global_batch_size)
    if lanes != data.lanes:
        several = f"{counts[0]} to {counts[-1]} (workers.min_count to workers.count)"
        workers = f"any of {several}" if len(counts) > 1 else f"{counts[0]}"
        return [
            f"data.lanes: {data.lanes} lanes cannot be shared out to {workers} workers; "
            f"{lanes} lanes and data.global_batch_size = {batch} work"
        ]
    if batch != data.global_batch_size:
        return [
            f"data.global_batch_size: {data.global_batch_size} is not a multiple of "
            f"{data.lanes} lanes; {batch} is the next that works"
        ]
    if lanes // counts[0] > data.open_lanes:
        return [
            f"data.open_lanes: a rank owns {lanes // counts[0]} lanes and may hold only "
            f"{data.open_lanes} row groups; use more workers or raise data.open_lanes (memory)"
        ]
    return []


def _name_problems(recipe: Recipe) -> list[str]:
    """Names that could not be told apart, or not be held at all, by the modules of the tables.

    These are called `table` or `table__set`, and PyTorch allows no dot in them; `table/set` is the
    key in a checkpoint.
    """
    problems = []
    for index, feature in enumerate(recipe.features.sparse):
        bad = _forbidden(feature.table_name)
        if bad and feature.table:
            problems.append(
                f"features.sparse[{index}].table: the name of a table is not empty and cannot hold "
                f"'.', '/' or '__', got '{feature.table}'; choose another name"
            )
        elif bad:
            problems.append(
                f"features.sparse[{index}].table: not set, so the table has the name of the column, "
                f"'{feature.source}', but cannot hold '.', '/' or '__'; set `table`"
            )
    return problems


def _number_table_names(recipe: Recipe) -> Iterator[str]:
    """Tables of ids that have the name of one of numbers."""
    numbers = {each.table_name for number in recipe.features.numbers for each in number.lookups}
    for index, feature in enumerate(recipe.features.sparse):
        if feature.table_name in numbers:
            yield (
                f"features.sparse[{index}].table: '{feature.table_name}' is the table of numbers; "
                "set `table` to another name"
            )


def _forbidden(name: str) -> bool:
    return not name or any(part in name for part in (".", "/", "__"))


def _set_problems(recipe: Recipe) -> Iterator[str]:
    model = recipe.model
    if not getattr(model, "reads_sets", True):
        return _unread_sets(recipe.embedding, getattr(model, "name", ""))
    has_linear = getattr(model, "has_first_order", False)
    linear = linear_set(recipe.num_logits) if has_linear else None
    given = (recipe.embedding, recipe.features.lookups, linear)
    return chain(set_problems(*given), placement_problems(*given))


def _part_problems(recipe: Recipe) -> Iterator[str]:
    features = recipe.features
    return part_problems(
        recipe.model, [*(each.name for each in features.lookups), *features.numeric]
    )


def _unread_sets(section: EmbeddingSection, model: str) -> Iterator[str]:
    """Sets that are asked for where the model reads none."""
    for key in ("sets", "num_sets", "dim"):
        if getattr(section, key) != EmbeddingSection.model_fields[key].default:
            yield (
                f"embedding.{key}: model.name = '{model}' reads no embedding set; leave it out or "
                "choose another model"
            )


def _device_problems(recipe: Recipe) -> list[str]:
    """What the CPU lacks of that which is asked for: optimizers, their options, other memory."""
    if recipe.train.device != "cpu":
        return []
    problems = [
        cpu_problem(optimizer, sharding, where)
        for where, sharding, optimizer in _optimizers_in_use(recipe)
    ]
    kernels = {"embedding.kernel": recipe.embedding.kernel}
    for name, options in recipe.embedding.tables.items():
        if options.kernel is not None:
            kernels[f"embedding.tables.{name}.kernel"] = options.kernel
    problems += [
        f"{where}: '{kernel}' is for tables that a CUDA device looks up in host memory; on CPU leave "
        "it out"
        for where, kernel in kernels.items()
        if kernel not in ("auto", "fused")
    ]
    return [problem for problem in problems if problem is not None]


def _cache_problems(recipe: Recipe) -> list[str]:
    """A size of caches where no table can have one."""
    section, where = recipe.embedding, "embedding.cache_load_factor"
    if section.cache_load_factor == EmbeddingSection.model_fields["cache_load_factor"].default:
        return []
    if recipe.train.device == "cpu":
        return [f"{where}: only a CUDA device caches rows of tables; on CPU leave it out"]
    for name in dict.fromkeys(feature.table_name for feature in recipe.features.lookups):
        options = section.tables.get(name, TableOptions())
        kernel, kind = options.kernel or section.kernel, options.sharding or section.sharding
        may_cache = kind != "data_parallel" and not isinstance(options.ids, ManagedIds)
        if may_cache and kernel in ("auto", "fused_uvm_caching"):
            return []
    return [
        f"{where}: no table can have a cache: those with kernel = 'fused_uvm_caching' or 'auto' can, "
        "unless they are 'data_parallel' or have managed ids; leave it out"
    ]


def _rank_problems(recipe: Recipe) -> list[str]:
    """Copies of the tables, and types on the wire, that do not go with the number of workers."""
    section, world = recipe.embedding, recipe.workers.count
    of_copy, problems = section.ranks_per_copy, []
    if of_copy is not None and len(recipe.workers.counts) > 1:
        problems.append(
            "embedding.ranks_per_copy: copies of the tables need a fixed number of workers; leave it "
            "or workers.min_count out"
        )
    elif of_copy is not None and (of_copy >= world or world % of_copy):
        divisors = [str(n) for n in range(1, world) if world % n == 0]
        problems.append(
            f"embedding.ranks_per_copy: {world} workers cannot hold several copies of the tables "
            f"with {of_copy} ranks each; use " + " or ".join([*divisors, "leave it out"])
        )
    if section.sync_every > 1 and of_copy is None:
        problems.append(
            "embedding.sync_every: there is one copy of the tables, and nothing to average; set "
            "embedding.ranks_per_copy or leave it at 1"
        )
    for each in recipe.workers.counts:
        wire = wire_problem(section.communication, recipe.data.global_batch_size // each)
        if each > 1 and wire is not None:
            problems.append(wire)
            break
    return problems


def _optimizers_in_use(recipe: Recipe) -> list[tuple[str, str, TableOptimizer]]:
    """The key that gives an optimizer, the kind of a table that has it, and the optimizer, each once."""
    section = recipe.embedding
    found: dict[tuple[str, str], TableOptimizer] = {}
    for name in dict.fromkeys(feature.table_name for feature in recipe.features.lookups):
        options = section.tables.get(name, TableOptions())
        kind = options.sharding or section.sharding
        for index, each in enumerate(section.resolved_sets):
            if each.optimizer is not None:
                found[f"embedding.sets[{index}].optimizer", kind] = each.optimizer
            elif options.optimizer is not None:
                found[f"embedding.tables.{name}.optimizer", kind] = options.optimizer
            else:
                found["embedding.optimizer", kind] = section.optimizer
    return [(where, kind, optimizer) for (where, kind), optimizer in found.items()]


def _table_problems(recipe: Recipe) -> list[str]:
    tables = {feature.table_name for feature in recipe.features.lookups}
    problems = [
        f"embedding.tables.{name}: no feature uses this table; {nearest(name, tables)}"
        for name in recipe.embedding.tables
        if name not in tables
    ]
    numbers = {each.table_name for number in recipe.features.numbers for each in number.lookups}
    for name, options in recipe.embedding.tables.items():
        if name in numbers:
            problems += number_table_problems(name, options)
            continue
        problem = row_problem(options)
        if problem is not None:
            problems.append(f"embedding.tables.{name}.{problem}")
        for problem in managed_problems(recipe.embedding, options):
            problems.append(f"embedding.tables.{name}.{problem}")
    return problems


def _module_problems(recipe: Recipe) -> Iterator[str]:
    """What the model's sequence module lacks; a model outside the package reads what it likes."""
    if isinstance(recipe.model, Custom):
        return iter(())
    sets = {each.name: each.features for each in recipe.embedding.resolved_sets}
    reads = getattr(recipe.model, "reads_sets", True)
    module = getattr(recipe.model, "sequence", None)
    return module_problems(module, recipe.features.sequences, sets if reads else {})


def _column_problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.data.order == "time" and recipe.features.time is None:
        problems.append("features.time: data.order = 'time' needs the column that holds the time")
    if recipe.train.schedule.decay == "plateau" and recipe.data.splits.valid is None:
        problems.append(
            "data.splits.valid: train.schedule.decay = 'plateau' falls by evaluations on these rows; "
            "name them"
        )
    if recipe.calibration is not None and recipe.data.splits.valid is None:
        problems.append("data.splits.valid: [calibration] is fitted on these rows; name them")
    metrics = {"evaluate.metric": recipe.evaluate.metric}
    if recipe.online is not None:
        metrics["online.metric"] = recipe.online.metric
    for key, metric in metrics.items():
        if metric is not None:
            problems += _metric_problems(recipe, key, metric)
    if "batch" == getattr(recipe.model, "norm", None) and recipe.data.global_batch_size < 2:
        problems.append("model.norm: batch moments need at least 2 rows in a batch")
    return problems


def _metric_problems(recipe: Recipe, key: str, metric: str) -> Iterator[str]:
    task, _, kind = metric.partition("/")
    kinds = ("auc", "gauc", "logloss", "ne", "rig", "pcoc", "ece")
    if task not in recipe.task_names or kind not in kinds:
        known = [f"{name}/{each}" for name in recipe.task_names for each in kinds]
        yield f"{key}: unknown metric '{metric}'; {nearest(metric, known)}"
    elif kind == "gauc" and recipe.features.group is None:
        yield f"features.group: {key} = 'gauc' needs the column of groups"
