"""From a recipe to a sharded, initialised model with its optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from prismrec.config import Recipe
from prismrec.embeddings import access
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.communication import WireSwitch, check_communication, make_codecs
from prismrec.embeddings.copies import TableCopies, copies_env, places_of_copy
from prismrec.embeddings.managed.id_map import BYTES_PER_ROW
from prismrec.embeddings.managed.tables import ManagedTables
from prismrec.embeddings.memory import local_bytes
from prismrec.embeddings.optimizers import check_optimizers
from prismrec.embeddings.plan import (
    Placement,
    agreed_placement,
    agreed_plan,
    choose_layouts,
    device_memory,
    host_memory_per_rank,
    place_of,
    predicted_beside,
    predicted_bytes,
    sharding_plan,
)
from prismrec.embeddings.row_adam import RowAdam
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.sharder import Sharder, shard_tables
from prismrec.embeddings.shards import LocalShard
from prismrec.embeddings.touched import TouchedRows
from prismrec.train.model import Leaf, build_train_model
from prismrec.train.optimizers import Ema, Optimizers, check_coverage, dense_optimizer, flat_state
from prismrec.train.process_group import Ranks

_TOUCHED_BYTES = 4
"""Of the record of one row in `TouchedRows`."""


@dataclass(frozen=True, slots=True)
class TableMemory:
    """Bytes of the tables with optimizer state, maps of managed ids and touched rows, by rank.

    Args:
        predicted: by the plan.
        held: as measured.
    """

    predicted: tuple[int, ...]
    held: tuple[int, ...]

    def metrics(self) -> dict[str, float]:
        """Those of the fullest rank: `memory/predicted_bytes` and `memory/table_bytes`."""
        return {
            "memory/predicted_bytes": float(max(self.predicted)),
            "memory/table_bytes": float(max(self.held)),
        }

    def facts(self) -> dict[str, list[int]]:
        """Those of every rank, for the run's record."""
        return {
            "predicted_table_bytes": list(self.predicted),
            "table_bytes": list(self.held),
        }


@dataclass
class ShardedModel:
    """A model whose tables are spread over the ranks.

    Args:
        dmp: TorchRec's wrapper, which the pipeline runs.
        leaf: everything after the lookup (the same object as inside `dmp`).
        spec: what the tables are.
        plan: where they are, as JSON-able lines.
        optimizers: everything that updates it.
        plain: the plain optimizers inside `optimizers`, that of the dense weights first.
        ranks: this process among the others.
        names: names of the dense parameters.
        managed: the tables that give rows to ids as they come.
        ranks_per_copy: ranks that hold the tables together.
        wire: lets vectors travel in fp32 for a while, whatever training sends them in.
        touched: which rows training has touched when, where the recipe asks for that.
        steps_before: steps that the tables' optimizer state had behind it when the run started.
    """

    dmp: DistributedModelParallel
    leaf: Leaf
    spec: EmbeddingSpec
    plan: list[dict[str, Any]]
    optimizers: Optimizers
    plain: list[torch.optim.Optimizer]
    ranks: Ranks
    names: dict[nn.Parameter, str]
    managed: ManagedTables
    ranks_per_copy: int
    wire: WireSwitch
    touched: TouchedRows | None = None
    steps_before: int = 0

    def shards(self) -> list[LocalShard]:
        """This rank's blocks of every table and set, views with optimizer state."""
        states = {p: state for each in self.plain for p, state in each.state.items()}
        shards = access.local_shards(self.dmp, self.spec, self.ranks.rank, states)
        if self.touched is not None:
            self.touched.attach(shards)
        return shards

    def dense(self) -> dict[str, Tensor]:
        """Dense weights and buffers by name, the tensors themselves."""
        return dict(self.leaf.ranker.state_dict())

    def dense_optimizer(self) -> dict[str, Tensor]:
        """State of the dense optimizer by `parameter/state`, the tensors themselves."""
        return flat_state(self.plain[0], self.names)

    def set_steps_done(self, steps: int) -> None:
        """Tell whatever corrects the bias of Adam's moments how many steps are in them.

        Args:
            steps: of the run, without those that its weights started with.
        """
        steps += self.steps_before
        access.set_steps_done(self.dmp, steps)
        for optimizer in self.plain:
            if isinstance(optimizer, RowAdam):
                optimizer.steps_done = steps

    def average_copies(self) -> None:
        """Make the copies of the tables one, where groups of ranks have their own.

        Collective: every rank calls it, before anything reads the tables.
        """
        if self.optimizers.copies is not None:
            self.optimizers.copies.average()

    def averages(self) -> dict[str, Tensor]:
        """The moving average of the dense weights, or nothing."""
        return dict(self.optimizers.ema.averages) if self.optimizers.ema else {}

    def managed_ids(self) -> dict[str, float]:
        """What happened to the ids of managed tables since the last call, see `ManagedTables.metrics`.

        Collective: every rank calls it.
        """
        return self.managed.metrics(self.ranks.sum, self.ranks.device)

    def table_memory(self) -> TableMemory:
        """What the tables take on every rank, see `TableMemory`, as planned and as they are.

        Collective: every rank calls it.
        """
        world_size = self.ranks.world_size
        held = torch.zeros(world_size, dtype=torch.int64, device=self.ranks.device)
        record = 0 if self.touched is None else self.touched.num_bytes
        beside = self.managed.num_bytes + record
        held[self.ranks.rank] = local_bytes(self.shards()).total + beside
        of_row = 0 if self.touched is None else _TOUCHED_BYTES
        per_row = {
            each.name: of_row + (BYTES_PER_ROW if each.table.is_managed else 0)
            for each in physical_tables(self.spec)
        }
        tables = predicted_bytes(self.plan, self.ranks_per_copy)
        others = predicted_beside(self.plan, self.ranks_per_copy, per_row)
        of_copy = [each.total + more for each, more in zip(tables, others, strict=True)]
        predicted = of_copy * (world_size // self.ranks_per_copy)
        return TableMemory(tuple(predicted), tuple(self.ranks.sum(held).tolist()))


def shard_model(
    recipe: Recipe, spec: EmbeddingSpec, ranks: Ranks, *, is_bf16: bool, total_steps: int
) -> ShardedModel:
    """Build on meta, plan, shard, initialise and give every parameter its optimizer.

    Collective: every rank calls it.

    Raises:
        UserError: see `check_optimizers`, `check_communication`, `agreed_plan` and `check_coverage`.
    """
    group = dist.group.WORLD
    assert group is not None
    placement = agreed_placement(_placement(recipe, ranks), group)
    placement = placement.one_copy(recipe.embedding.ranks_per_copy)
    check_optimizers(spec, ranks.device.type)
    if placement.world_size > 1:
        check_communication(spec, placement.batch_size)
    spec = choose_layouts(spec, placement)
    parts = build_train_model(recipe, spec, ranks.device, is_bf16=is_bf16)
    lines = agreed_plan(spec, placement, group)
    places, env = [place_of(line) for line in lines], None
    if placement.world_size < ranks.world_size:
        env = copies_env(placement.world_size, placement.device, placement.local_world_size)
        places = places_of_copy(places, ranks.rank // env.world_size * env.world_size)
    plan = sharding_plan(parts.model, places, placement.device, ranks.local_world_size)
    wire = WireSwitch()
    sharder = Sharder(make_codecs(spec.communication, placement.batch_size, wire))
    tables = shard_tables(parts.model, spec, plan, ranks.device, sharder, env)
    dmp = tables.dmp
    dense = {name: p for name, p in parts.leaf.ranker.named_parameters() if p.requires_grad}
    plain = [dense_optimizer(parts.leaf.ranker, recipe.train.optimizer), *tables.plain]
    check_coverage(dmp, plain)
    optimizers = Optimizers(dmp, dense, plain, recipe.train.schedule, total_steps)
    optimizers.clip_norm = recipe.train.clip_norm
    if recipe.train.ema_decay is not None:
        optimizers.ema = Ema(dense, recipe.train.ema_decay)
    if env is not None:
        optimizers.copies = TableCopies(dmp, env, recipe.embedding.sync_every)
    names = {parameter: name for name, parameter in dense.items()}
    managed = ManagedTables(dmp, spec)
    of_copy = placement.world_size
    sharded = ShardedModel(
        dmp, parts.leaf, spec, lines, optimizers, plain, ranks, names, managed, of_copy, wire
    )
    access.initialize(sharded.shards(), spec)
    if recipe.embedding.track_touched:
        sharded.touched = TouchedRows(dmp, spec, ranks.device)
    managed.own(sharded.shards())
    return sharded


def bytes_per_row(recipe: Recipe) -> int:
    """What a row of a shard takes on its rank besides weights and optimizer state."""
    return _TOUCHED_BYTES if recipe.embedding.track_touched else 0


def _placement(recipe: Recipe, ranks: Ranks) -> Placement:
    """The machines as this rank sees them."""
    return Placement(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        device=ranks.device.type,
        memory=device_memory(ranks.device, ranks.local_world_size),
        batch_size=recipe.data.global_batch_size // ranks.world_size,
        host_memory=host_memory_per_rank(ranks.local_world_size),
        reserved=recipe.embedding.reserved_memory,
        bytes_per_row=bytes_per_row(recipe),
    )
