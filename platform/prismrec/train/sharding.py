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
from prismrec.embeddings import optimizers as table_optimizers
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.memory import local_bytes
from prismrec.embeddings.plan import (
    Placement,
    Sharder,
    data_parallel_tables,
    describe_plan,
    device_memory,
    host_memory_per_rank,
    plan_tables,
    predicted_bytes,
)
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.train.model import Leaf, build_train_model
from prismrec.train.optimizers import Ema, Optimizers, check_coverage, dense_optimizer, flat_state
from prismrec.train.process_group import Ranks

_TABLES = "embedding_bags."


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
    """

    dmp: DistributedModelParallel
    leaf: Leaf
    spec: EmbeddingSpec
    plan: list[dict[str, Any]]
    optimizers: Optimizers
    plain: list[torch.optim.Optimizer]
    ranks: Ranks
    names: dict[nn.Parameter, str]

    def shards(self) -> list[LocalShard]:
        """This rank's blocks of every table and set, views with optimizer state."""
        states = {p: state for each in self.plain for p, state in each.state.items()}
        return access.local_shards(self.dmp, self.spec, self.ranks.rank, states)

    def dense(self) -> dict[str, Tensor]:
        """Dense weights and buffers by name, the tensors themselves."""
        return dict(self.leaf.ranker.state_dict())

    def dense_optimizer(self) -> dict[str, Tensor]:
        """State of the dense optimizer by `parameter/state`, the tensors themselves."""
        return flat_state(self.plain[0], self.names)

    def averages(self) -> dict[str, Tensor]:
        """The moving average of the dense weights, or nothing."""
        return dict(self.optimizers.ema.averages) if self.optimizers.ema else {}

    def table_memory(self) -> dict[str, float]:
        """Bytes of tables with optimizer state as planned and as they are, on the fullest rank.

        Collective: every rank calls it.

        Returns:
            `memory/predicted_bytes` and `memory/table_bytes`.
        """
        world_size = self.ranks.world_size
        held = torch.zeros(world_size, dtype=torch.int64, device=self.ranks.device)
        held[self.ranks.rank] = local_bytes(self.shards()).total
        predicted = max(each.total for each in predicted_bytes(self.plan, world_size))
        return {
            "memory/predicted_bytes": float(predicted),
            "memory/table_bytes": float(self.ranks.sum(held).max()),
        }


def shard_model(
    recipe: Recipe, spec: EmbeddingSpec, ranks: Ranks, *, is_bf16: bool, total_steps: int
) -> ShardedModel:
    """Build on meta, plan, shard, initialise and give every parameter its optimizer.

    Collective: every rank calls it.

    Raises:
        UserError: see `check_optimizers`, `plan_tables` and `check_coverage`.
    """
    table_optimizers.check_optimizers(spec, ranks.device.type)
    parts = build_train_model(recipe, spec, ranks.device, is_bf16=is_bf16)
    placement = Placement(
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        device=ranks.device.type,
        memory=device_memory(ranks.device, ranks.local_world_size),
        batch_size=recipe.data.global_batch_size // ranks.world_size,
        host_memory=host_memory_per_rank(ranks.local_world_size),
    )
    group = dist.group.WORLD
    assert group is not None
    plan = plan_tables(parts.model, spec, placement, group)
    replicated = data_parallel_tables(plan)
    bags = {_key(name): p for name, p in parts.model.tables.named_parameters()}
    fused = [each for each in physical_tables(spec) if each.name not in replicated]
    table_optimizers.fuse_optimizers(fused, bags)
    dmp = DistributedModelParallel(
        parts.model, device=ranks.device, plan=plan, sharders=[Sharder()]
    )
    dense = {name: p for name, p in parts.leaf.ranker.named_parameters() if p.requires_grad}
    plain = [
        dense_optimizer(parts.leaf.ranker, recipe.train.optimizer),
        *_of_replicas(dmp, spec, replicated),
    ]
    check_coverage(dmp, plain)
    optimizers = Optimizers(dmp, dense, plain, recipe.train.schedule, total_steps)
    optimizers.clip_norm = recipe.train.clip_norm
    if recipe.train.ema_decay is not None:
        optimizers.ema = Ema(dense, recipe.train.ema_decay)
    names = {parameter: name for name, parameter in dense.items()}
    sharded = ShardedModel(
        dmp, parts.leaf, spec, describe_plan(plan, spec), optimizers, plain, ranks, names
    )
    access.initialize(sharded.shards(), spec)
    return sharded


def _of_replicas(
    dmp: DistributedModelParallel, spec: EmbeddingSpec, replicated: set[str]
) -> list[torch.optim.Optimizer]:
    """The plain optimizers of the data_parallel tables, if there are any."""
    tables = {each.name: each for each in physical_tables(spec)}
    whole = [
        (tables[_key(name)], parameter)
        for name, parameter in dmp.named_parameters()
        if _key(name) in replicated
    ]
    return table_optimizers.plain_optimizers(whole)


def _key(name: str) -> str:
    """Physical table of a parameter's name; the name itself for anything else."""
    tail = name.rpartition(_TABLES)[2] if _TABLES in name else name
    return tail.removesuffix(".weight")
