"""Copies of the tables, each on a group of ranks, averaged every few steps (2D parallelism).

TorchRec's `DMPCollection` refuses the CPU, knows Adagrad's state only and averages tables past the
caches in front of them, so that here its sharding environment is used without it.

Notation: C copies, R ranks that hold one together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchrec.distributed.types import ShardingEnv2D

from prismrec.embeddings.access import drop_cached_rows, lookups
from prismrec.embeddings.plan.expand import TablePlace


def copies_env(ranks_per_copy: int, device: str, local_world_size: int) -> ShardingEnv2D:
    """Groups of R consecutive ranks with a copy each, and of the C ranks with the same part of one.

    Collective: every rank calls it.

    Args:
        ranks_per_copy: R, which divides the number of ranks.
        device: "cpu" or "cuda".
        local_world_size: ranks of a copy on one machine, which those kinds go by that keep parts of
            a table on one.
    """
    everyone = dist.group.WORLD
    assert everyone is not None
    world_size = everyone.size()
    mesh = DeviceMesh(
        device,
        [list(range(at, at + ranks_per_copy)) for at in range(0, world_size, ranks_per_copy)],
        mesh_dim_names=("replicate", "shard"),
    )
    return ShardingEnv2D(
        sharding_pg=mesh.get_group("shard"),
        replica_pg=mesh.get_group("replicate"),
        global_pg=everyone,
        device_mesh=mesh,
        node_group_size=local_world_size,
        use_inter_host_allreduce=True,  # TorchRec's name for groups of consecutive ranks
    )


def places_of_copy(places: Iterable[TablePlace], first_rank: int) -> list[TablePlace]:
    """The places of the first copy, moved to the ranks of another.

    Args:
        places: on ranks 0 to R - 1.
        first_rank: of the other copy.
    """
    return [
        replace(
            place,
            strips=tuple(strip._replace(rank=strip.rank + first_rank) for strip in place.strips),
        )
        for place in places
    ]


class TableCopies:
    """Averages the copies of the fused tables; those of data_parallel tables never differ.

    Every copy takes its own steps on its own ranks' rows, with C times the gradient that these rows
    have in the whole batch. An average replaces weights and optimizer states of all copies by their
    means: for SGD that is the step of the whole batch, where it is taken after each.

    Args:
        model: the sharded model.
        env: its groups of ranks.
        every: steps from one average to the next.
    """

    def __init__(self, model: nn.Module, env: ShardingEnv2D, every: int) -> None:
        self._model = model
        self._group = env.replica_pg
        self._every = every
        self._are_equal = True

    def after_step(self, step: int) -> None:
        """Average, if it is time.

        Collective: every rank calls it after each step.

        Args:
            step: steps done.
        """
        self._are_equal = False
        if step % self._every == 0:
            self.average()

    @torch.no_grad()
    def average(self) -> None:
        """Make all copies their mean, if they have made steps since they were made so last.

        Collective: every rank calls it at the same step.
        """
        if self._are_equal:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in self._tensors():
            if tensor.numel():
                by_type.setdefault(tensor.dtype, []).append(tensor)
        for tensors in by_type.values():
            torch._foreach_div_(tensors, float(self._group.size()))
            self._group.allreduce_coalesced(tensors, dist.AllreduceCoalescedOptions()).wait()
        drop_cached_rows(self._model)
        self._are_equal = True

    def _tensors(self) -> list[Tensor]:
        """Weights and states of this rank's parts, with what is still in a cache written back."""
        found = []
        for lookup in lookups(self._model):
            for kernel in lookup.modules():
                if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
                    kernel.flush()
                    found += kernel.split_embedding_weights()
                    found += [state for of in kernel.split_optimizer_states() for state in of]
        return found
